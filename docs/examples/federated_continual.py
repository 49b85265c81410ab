"""Federated continual learning: what is forgotten, and what does a memory help?

Ten clients learn the digits two classes at a time, with and without a memory, between the bounds:
all data in one place, and nobody exchanging anything. Writes ``matrix.png``.
"""

# %% The same configuration, with and without a memory, and its bounds
import fedsim
from fedsim.report.command import report

COMMON = "training.epochs=2 clock.rounds_per_experience=4"
runs = {
    name: fedsim.run(f"{COMMON} {words}")
    for name, words in {
        "replay": "client=replay",
        "naive": "client=sgd",
        "central, naive": "client=sgd mode=central",
        "local, naive": "client=sgd mode=local",
    }.items()
}

# %% Accuracy at the end, and how much was forgotten
for name, run in runs.items():
    summary = run.summary
    print(f"{name:15} accuracy {summary['test_accuracy']:.3f}, lost {summary['forgetting']:.3f}")

# %% Accuracy on each experience (columns) after each was learned (rows)
print(runs["naive"].matrix.round(2))
runs["naive"].plot_matrix().save("matrix.png")

# %% A report of all four, in one file
print(report([run.path for run in runs.values()], "continual.html"))
