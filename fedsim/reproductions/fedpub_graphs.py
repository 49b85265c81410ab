"""FED-PUB's protocol on other graphs, untuned: METIS into 10 clients, Cora's hyper-parameters.

Nothing is published for these graphs, so nothing is judged; the table shows whether what holds on
Cora is a property of Cora. Each needs its files in ``FEDSIM_DATA``.

Source:
    Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206.
"""

from collections.abc import Iterator

from fedsim.reproduce import Check, Runner
from fedsim.reproductions.fedpub import spread

GRAPHS = ("chameleon", "actor", "minesweeper", "facebook", "twitch")
METHODS = ("local", "fedavg", "fedpub")


def checks(runner: Runner) -> Iterator[Check]:
    """One row per graph, FED-PUB beside learning alone and averaging."""
    for graph in GRAPHS:
        found = {
            method: spread(
                runner.over_seeds(f"experiment={method}_cora_disjoint_10", f"dataset={graph}")
            )
            for method in METHODS
        }
        yield Check(
            claim=f"FED-PUB, {graph}, 10 clients",
            wanted=f"alone {found['local']}, FedAvg {found['fedavg']}",
            ours=found["fedpub"],
            holds=None,
        )
