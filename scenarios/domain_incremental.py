"""The same classes look different in every experience."""

from typing import Literal

from torch import Tensor

from fedsim.data import Dataset
from fedsim.seeding import numpy_generator
from scenarios.base import PartitionedScenario, require_experiences
from scenarios.membership import Cut, Everywhere, Membership
from scenarios.order import Order
from scenarios.partition import Partition
from scenarios.shifts import Shift


class DomainIncremental(PartitionedScenario):
    """Experience ``e`` shows examples through the shift of domain ``e``, the same for all clients.

    Test data: every experience has all of the client's test examples, seen through its shift.

    Args:
        dataset: The data.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Number of domains ``E``.
        shift: How a domain changes the inputs.
        share: ``full``: every experience has all of a client's training examples; ``split``: the
            examples are cut at random into equal parts, one per experience.
        seed: Seed of the run.

    Raises:
        ValueError: If the shift does not fit the inputs or the number of experiences.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        shift: Shift,
        share: Literal["full", "split"],
        seed: int,
    ) -> None:
        require_experiences(num_experiences)
        if share not in ("full", "split"):
            raise ValueError(f"share must be full or split, got {share!r}")
        num_examples = len(dataset.train.targets)
        train: Membership = Everywhere(num_examples=num_examples)
        if share == "split":
            rng = numpy_generator(seed, "cut")
            train = Cut(num_examples=num_examples, num_experiences=num_experiences, rng=rng)
        super().__init__(
            dataset=dataset,
            partition=partition,
            order=order,
            num_clients=num_clients,
            num_experiences=num_experiences,
            membership={
                "train": train,
                "test": Everywhere(num_examples=len(dataset.test.targets)),
            },
            seed=seed,
        )
        shift.check(self.input_shape, num_experiences)
        self._shift = shift

    def transform(self, inputs: Tensor, experience: int) -> Tensor:
        """See :meth:`PartitionedScenario.transform`."""
        return self._shift(inputs, experience, self._seed)
