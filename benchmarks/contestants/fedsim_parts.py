"""What a user of fedsim brings along for these workloads; ``conf/`` beside it names the parts."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from workloads import CLASSES, WORKLOADS, examples, flat

from contestants.stopwatch import Stopwatch
from fedsim.arrays import to_params
from fedsim.data import Dataset, Indices, TensorExamples
from scenarios.partition import Dealing
from strategies.prototypes import Prototypes

_PACKAGES = ["fedsim-lab", "flwr", "torch"]
_final: list[np.ndarray] = []  # what the strategy held last


def dataset(*, workload: str) -> Dataset:
    """The examples of a workload; nothing is tested, so the first few are the test data."""
    work = WORKLOADS[workload]
    inputs, targets = (part.flatten(0, 1) for part in examples(work))
    owners = torch.arange(work.clients).repeat_interleave(work.samples)
    return Dataset(
        name=workload,
        train=TensorExamples(inputs=inputs, targets=targets, groups=owners),
        test=TensorExamples(inputs=inputs[:CLASSES], targets=targets[:CLASSES]),
        num_classes=CLASSES,
    )


class Owned(Dealing):
    """Every client gets the examples that bear its number."""

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        del num_clients, rng
        assert dataset.train.groups is not None
        return dataset.train.groups.numpy()


class Kept(FedAvg):
    """Flower's ``FedAvg``; at the end, where clients would be tested, keeps the weights instead."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Nobody is tested."""
        del server_round, config, grid
        _final[:] = [flat(list(to_params(arrays).values()))]
        return []


class KeptTable(Prototypes):
    """fedsim's ``Prototypes``; at the end keeps the mean of every class, zero without any."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Nobody is tested."""
        del server_round, config, grid
        table = to_params(arrays)
        assert self.num_classes is not None
        means = torch.zeros(self.num_classes, table["sums"].shape[1], dtype=torch.float64)
        means[table["classes"]] = table["sums"] / table["counts"].unsqueeze(1)
        _final[:] = [flat([means])]
        return []


class Timed:
    """A logger that takes the time of every round.

    Args:
        tree: Whether CPU seconds of worker processes count.
    """

    def __init__(self, *, tree: bool) -> None:
        self._watch = Stopwatch(tree=tree)
        self._accuracies: list[float] = []

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """Nothing begins here: the first round begins with the line of the untrained model."""

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """A round is over; round 0 is the untrained model."""
        self._watch.mark()
        if round_ > 0 and "test_accuracy" in values:
            self._accuracies.append(values["test_accuracy"])

    def close(self, summary: dict[str, Any]) -> None:
        """The run is over: the weights, or the accuracy of every round where those are kept."""
        del summary
        self._watch.report(_PACKAGES, _final[0] if _final else np.array(self._accuracies))
