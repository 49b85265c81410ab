"""Plain federated learning: how much do skewed labels cost?

Ten clients learn the digits; once everybody holds all classes, once few of them. Writes
``skew.png``. As a notebook: every comment that begins with ``%%`` starts a cell.
"""

# %% One run per skew; the words are those of the command line
import fedsim

COMMON = "scenario=single client=sgd training.epochs=1 clock.rounds_per_experience=8"
runs = {
    alpha: fedsim.run(
        f"{COMMON} clock.evaluate_every=1 partition=dirichlet partition.alpha={alpha}"
    )
    for alpha in (100, 0.1)
}

# %% One number each
for alpha, run in runs.items():
    print(f"alpha {alpha}: test accuracy {run.summary['test_accuracy']:.3f}")

# %% Accuracy over the rounds, as a pandas Series
print(runs[0.1].accuracy.round(3).to_string())

# %% Who holds what, and who is left behind
runs[0.1].plot_cut().save("skew.png")
print(runs[0.1].clients.sort_values().head(3))
