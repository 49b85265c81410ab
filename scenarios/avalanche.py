"""Any Avalanche benchmark as a federated scenario."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset, Indices
from fedsim.scenario import Split
from fedsim.seeding import numpy_generator
from scenarios.base import PartitionedScenario
from scenarios.membership import Everywhere, Labelled, Membership
from scenarios.order import Order
from scenarios.partition import Partition

if TYPE_CHECKING:  # importing Avalanche takes seconds
    from avalanche.benchmarks import CLScenario


class StreamExamples:
    """The examples of all experiences of an Avalanche stream behind each other.

    Examples are read from the benchmark when they are taken, through its evaluation transforms:
    a random augmentation would otherwise be drawn once and kept.

    Args:
        stream: Experiences whose ``dataset`` has ``targets``.
    """

    def __init__(self, *, stream: Any) -> None:
        datasets = [experience.dataset for experience in stream]
        self._datasets = [dataset.eval() for dataset in datasets]
        targets = [np.asarray(list(dataset.targets), np.int64) for dataset in datasets]
        self._begins = np.cumsum([0, *(len(t) for t in targets)])
        self.targets: Tensor = torch.from_numpy(np.concatenate(targets))
        self.groups: Tensor | None = None

    @property
    def experiences(self) -> Indices:
        """Experience of every example, ``[N]``."""
        return np.repeat(np.arange(len(self._datasets)), np.diff(self._begins))

    def take(self, indices: Indices) -> Tensor:
        """See :meth:`fedsim.data.Examples.take`."""
        places = np.searchsorted(self._begins, indices, side="right") - 1
        rows = [
            _tensor(self._datasets[place][int(i - self._begins[place])][0])
            for place, i in zip(places.tolist(), indices.tolist(), strict=True)
        ]
        if rows:
            return torch.stack(rows)
        return self.take(np.zeros(1, np.int64))[:0]


class AvalancheBenchmark(PartitionedScenario):
    """Each experience of the benchmark is dealt to the clients.

    The training and test streams have one experience each per experience here; a benchmark with a
    single test experience shows it in every experience.

    Args:
        benchmark: Has ``train_stream`` and ``test_stream``, e.g. from
            ``class_incremental_benchmark``, ``new_instances_benchmark``,
            ``benchmark_from_datasets`` or ``SplitMNIST``.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Length of the benchmark's training stream; named so that a clock can refer
            to it before the benchmark exists.
        tell_tasks: Tell the experience of every example as its task label. The benchmark's own
            task labels are not used.
        seed: Seed of the run.

    Raises:
        ValueError: If the streams do not fit each other or ``num_experiences``.
    """

    def __init__(
        self,
        *,
        benchmark: "CLScenario",
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        tell_tasks: bool = False,
        seed: int,
    ) -> None:
        lengths = {
            "train": len(list(benchmark.train_stream)),
            "test": len(list(benchmark.test_stream)),
        }
        _check_lengths(lengths, num_experiences, tell_tasks)
        train = StreamExamples(stream=benchmark.train_stream)
        test = StreamExamples(stream=benchmark.test_stream)
        num_classes = 1 + int(max(train.targets.max(), test.targets.max()))
        test_membership: Membership = Labelled(experiences=test.experiences)
        if lengths["test"] != num_experiences:
            test_membership = Everywhere(num_examples=len(test.targets))
        super().__init__(
            dataset=Dataset(name="benchmark", train=train, test=test, num_classes=num_classes),
            partition=partition,
            order=order,
            num_clients=num_clients,
            num_experiences=num_experiences,
            membership={"train": Labelled(experiences=train.experiences), "test": test_membership},
            seed=seed,
        )
        self._tell_tasks = tell_tasks
        if tell_tasks:
            mask = torch.zeros(num_experiences, num_classes, dtype=torch.bool)
            for examples in (train, test):
                mask[torch.from_numpy(examples.experiences), examples.targets] = True
            self.task_classes = mask

    def tasks(self, indices: Indices, experience: int, split: Split) -> Tensor | None:
        """See :meth:`PartitionedScenario.tasks`."""
        del split
        return torch.full((len(indices),), experience) if self._tell_tasks else None


def split_classes(*, dataset: Dataset, num_experiences: int, seed: int) -> "CLScenario":
    """An example benchmark: a fedsim data set cut by Avalanche's ``class_incremental_benchmark``.

    Args:
        dataset: The data.
        num_experiences: Experiences; Avalanche leaves out classes that do not divide evenly.
        seed: Draws the order of the classes.
    """
    from avalanche.benchmarks import class_incremental_benchmark

    order = numpy_generator(seed, "classes").permutation(dataset.num_classes).tolist()
    return class_incremental_benchmark(
        _avalanche_datasets(dataset), class_order=order, num_experiences=num_experiences
    )


def split_instances(*, dataset: Dataset, num_experiences: int, seed: int) -> "CLScenario":
    """An example benchmark: a data set cut by Avalanche's ``new_instances_benchmark``.

    Args:
        dataset: The data.
        num_experiences: Experiences; all share the test data.
        seed: Draws which examples come when.
    """
    from avalanche.benchmarks import new_instances_benchmark

    parts = _avalanche_datasets(dataset)
    with torch.random.fork_rng(devices=[]):  # Avalanche seeds the global generator
        return new_instances_benchmark(
            parts["train"], parts["test"], num_experiences, seed=seed, balance_experiences=True
        )


def _avalanche_datasets(dataset: Dataset) -> dict[str, Any]:
    """Both parts of a data set as Avalanche datasets."""
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    result = {}
    for split, examples in (("train", dataset.train), ("test", dataset.test)):
        inputs = examples.take(np.arange(len(examples.targets)))
        pairs = TensorDataset(inputs, examples.targets)
        pairs.targets = examples.targets.tolist()  # type: ignore[attr-defined]  # Avalanche's way
        result[split] = as_classification_dataset(pairs)
    return result


def _check_lengths(lengths: dict[str, int], num_experiences: int, tell_tasks: bool) -> None:
    if lengths["train"] != num_experiences:
        raise ValueError(
            f"num_experiences={num_experiences}, but the benchmark's training stream has"
            f" {lengths['train']} experiences"
        )
    if lengths["test"] not in (1, num_experiences):
        raise ValueError(
            f"the benchmark's test stream must have 1 or {num_experiences} experiences,"
            f" got {lengths['test']}"
        )
    if tell_tasks and lengths["test"] != num_experiences:
        raise ValueError(
            "tell_tasks needs a test experience for every training experience,"
            f" got {lengths['test']} for {num_experiences}"
        )


def _tensor(x: Any) -> Tensor:
    """An input as floats; images that no transform made a tensor are scaled to ``[0, 1]``."""
    if isinstance(x, Tensor):
        return x.float()
    array = np.array(x)
    if array.ndim == 3:
        array = array.transpose(2, 0, 1)
    elif array.ndim == 2:
        array = array[None]
    tensor = torch.from_numpy(array)
    return tensor.float() / 255.0 if tensor.dtype == torch.uint8 else tensor.float()
