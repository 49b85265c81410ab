"""FED-PUB on Cora: the paper's tables and what its penalties do, with our numbers.

A cell holds if our mean over seeds is within two standard deviations of the published mean, or
above. The authors' code, run again, does not reach every published number itself; where that was
measured the cell says so.

Source:
    Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206. Re-runs of
    the reference code: on a CPU, with the same METIS partitions.
"""

import statistics
from collections.abc import Iterator

from fedsim.reproduce import Check, Runner, mean

Cell = tuple[float, float]  # mean and standard deviation, percent
PARTITIONS = (
    "disjoint_5",
    "disjoint_10",
    "disjoint_20",
    "overlapping_10",
    "overlapping_30",
    "overlapping_50",
)
PUBLISHED = {  # by partition; a dash where there is none
    "local": "81.30±0.21 79.94±0.24 80.30±0.25 73.98±0.25 71.65±0.12 76.63±0.10",
    "fedavg": "74.45±5.64 69.19±0.67 69.50±3.58 76.48±0.36 53.99±0.98 53.99±4.53",
    "fedprox": "72.03±4.56 60.18±7.04 48.22±6.81 77.85±0.50 51.38±1.74 56.27±9.04",
    "fedper": "81.68±0.40 79.35±0.04 78.01±0.32 78.73±0.31 - -",
    "gcfl": "81.47±0.65 78.66±0.27 79.21±0.70 78.84±0.26 73.41±0.27 76.63±0.16",
    "fedgnn": "81.51±0.68 70.12±0.99 70.10±3.52 70.63±0.83 61.38±2.33 56.91±0.82",
    "fedsage": "72.97±5.94 69.05±1.59 57.97±12.6 77.52±0.46 51.99±0.42 55.48±11.5",
    "fedpub": "83.70±0.19 81.54±0.12 81.75±0.56 79.60±0.12 75.40±0.54 77.84±0.23",
}
RERUN: dict[tuple[str, str], Cell] = {
    ("fedavg", "disjoint_10"): (65.39, 5.32),
    ("fedpub", "disjoint_10"): (81.08, 0.76),
    ("fedavg", "overlapping_10"): (77.98, 0.39),
    ("fedpub", "overlapping_10"): (80.00, 0.34),
}
MAIN = "experiment=fedpub_cora_disjoint_10"
PENALTIES: dict[str, tuple[tuple[str, ...], Cell | None]] = {
    "reference code: values without gradient": ((), (81.08, 0.76)),
    "paper: L1 and squared distance, connected": (
        ("client.masking.penalties=connected", "client.masking.squared=true"),
        None,
    ),
    "L1 and a sum of norms, connected": (
        ("client.masking.penalties=connected", "client.masking.squared=false"),
        (71.04, 1.08),
    ),
    "none": (("client.masking.penalties=none",), None),
}


def checks(runner: Runner) -> Iterator[Check]:
    """Cell by cell, then what the method claims, then the penalties."""
    for method, row in PUBLISHED.items():
        for partition, published in zip(PARTITIONS, row.split(), strict=True):
            yield cell(runner, method, partition, parsed(published))
    yield from claims(runner)
    for name, (overrides, rerun) in PENALTIES.items():
        summaries = runner.over_seeds(MAIN, *overrides)
        zeros = mean(summaries, "measure/mask_zeros")
        yield Check(
            claim=f"Penalties, {name}",
            wanted="reported" if rerun is None else f"reference code re-run {text(rerun)}",
            ours=f"{spread(summaries)}, masks zero {zeros:.1%}",
            holds=None,
        )


def cell(runner: Runner, method: str, partition: str, published: Cell | None) -> Check:
    """One cell of the table."""
    summaries = runner.over_seeds(f"experiment={method}_cora_{partition}")
    wanted = "not published" if published is None else f"published {text(published)}"
    if (method, partition) in RERUN:
        wanted += f"; reference code re-run {text(RERUN[method, partition])}"
    return Check(
        claim=f"{method}, Cora {partition.replace('_', ' ')}",
        wanted=wanted,
        ours=spread(summaries),
        holds=None if published is None else percent(summaries) >= published[0] - 2 * published[1],
    )


def claims(runner: Runner) -> Iterator[Check]:
    """What holds on every seed."""
    ours = runner.over_seeds(MAIN)
    yield Check(
        claim="FED-PUB, Cora 10: at the level of the reference code",
        wanted="at least 80.30",
        ours=spread(ours),
        holds=percent(ours) >= 80.30,
    )
    averaged = runner.over_seeds("experiment=fedavg_cora_disjoint_10")
    gaps = [a["test_accuracy"] - b["test_accuracy"] for a, b in zip(ours, averaged, strict=True)]
    yield Check(
        claim="FED-PUB above FedAvg, Cora 10, smallest gap over seeds",
        wanted="above 0 points",
        ours=f"{100 * min(gaps):.1f} points",
        holds=min(gaps) > 0,
    )
    plain = runner.over_seeds(MAIN, "strategy.scale=0")
    yield Check(
        claim="... with tau = 0, plain mean and private masks",
        wanted="reference code re-run 81.69 ± 0.59",
        ours=spread(plain),
        holds=None,
    )


def percent(summaries: list[dict[str, float]]) -> float:
    """Mean official score in percent."""
    return 100 * mean(summaries, "test_accuracy")


def spread(summaries: list[dict[str, float]]) -> str:
    """Mean and population deviation of the official score, in percent."""
    scores = [100 * float(summary["test_accuracy"]) for summary in summaries]
    return text((percent(summaries), statistics.pstdev(scores)))


def parsed(word: str) -> Cell | None:
    """A cell of the table."""
    if word == "-":
        return None
    average, deviation = word.split("±")
    return float(average), float(deviation)


def text(cell: Cell) -> str:
    """A mean and its deviation."""
    return f"{cell[0]:.2f} ± {cell[1]:.2f}"
