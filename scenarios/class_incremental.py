"""New classes in every experience."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from fedsim.data import Dataset, Indices
from fedsim.seeding import numpy_generator
from scenarios.base import PartitionedScenario, require_experiences
from scenarios.membership import Labelled
from scenarios.order import Order
from scenarios.partition import Partition


class ClassIncremental(PartitionedScenario):
    """Each class belongs to one experience; test data holds the classes of its experience.

    Args:
        dataset: The data.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Number of experiences ``E``, at most the number of classes.
        class_order: ``sorted``, ``shuffled`` (from the seed) or a list naming every class once.
        classes_per_experience: Number of classes of every experience, adding up to ``K``; None
            splits the classes evenly, the first experiences getting one more where needed.
        seed: Seed of the run.

    Raises:
        ValueError: If the classes cannot be split in this way.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        class_order: Literal["sorted", "shuffled"] | Sequence[int] = "shuffled",
        classes_per_experience: Sequence[int] | None = None,
        seed: int,
    ) -> None:
        sizes = _sizes(dataset.num_classes, num_experiences, classes_per_experience)
        classes = _ordered(dataset.num_classes, class_order, seed)
        experience_of = np.empty(dataset.num_classes, np.int64)
        experience_of[classes] = np.repeat(np.arange(num_experiences), sizes)
        super().__init__(
            dataset=dataset,
            partition=partition,
            order=order,
            num_clients=num_clients,
            num_experiences=num_experiences,
            membership={
                "train": Labelled(experiences=experience_of[dataset.train.targets.numpy()]),
                "test": Labelled(experiences=experience_of[dataset.test.targets.numpy()]),
            },
            seed=seed,
        )
        self._experience_of = experience_of
        self.task_classes = self.told_classes()

    def classes(self, experience: int) -> list[int]:
        """See :meth:`Scenario.classes`: the classes that the split gives to the experience."""
        return np.flatnonzero(self._experience_of == experience).tolist()

    def told_classes(self) -> Tensor | None:
        """Value of :attr:`task_classes`: None, since task labels are not told here."""
        return None


def _sizes(
    num_classes: int, num_experiences: int, classes_per_experience: Sequence[int] | None
) -> list[int]:
    """Number of classes of every experience."""
    require_experiences(num_experiences)
    if num_experiences > num_classes:
        raise ValueError(
            f"num_experiences={num_experiences} is more than the {num_classes} classes of the data;"
            f" use num_experiences={num_classes} or fewer, or another scenario"
        )
    if classes_per_experience is None:
        less, more = divmod(num_classes, num_experiences)
        return [less + (e < more) for e in range(num_experiences)]
    sizes = [int(size) for size in classes_per_experience]
    if len(sizes) != num_experiences or sum(sizes) != num_classes or min(sizes) < 1:
        raise ValueError(
            f"classes_per_experience must be {num_experiences} positive numbers that add up to"
            f" {num_classes}, got {sizes}"
        )
    return sizes


def _ordered(num_classes: int, class_order: str | Sequence[int], seed: int) -> Indices:
    """The classes in the order in which they arrive."""
    if class_order == "sorted":
        return np.arange(num_classes)
    if class_order == "shuffled":
        return numpy_generator(seed, "classes").permutation(num_classes)
    if isinstance(class_order, str):
        raise ValueError(f"class_order must be sorted, shuffled or a list, got {class_order!r}")
    classes = np.array([int(c) for c in class_order], np.int64)
    if not np.array_equal(np.sort(classes), np.arange(num_classes)):
        raise ValueError(
            f"class_order must name each class 0..{num_classes - 1} once, got {classes.tolist()}"
        )
    return classes
