"""More examples of the same classes in every experience."""

from fedsim.data import Dataset
from fedsim.seeding import numpy_generator
from scenarios.base import PartitionedScenario, require_experiences
from scenarios.membership import Cut, Everywhere
from scenarios.order import Order
from scenarios.partition import Partition


class DataIncremental(PartitionedScenario):
    """Each client's training examples are cut at random into equal parts, one per experience.

    Test data does not change over time: every experience has all of the client's test examples,
    as in Avalanche's new-instances benchmarks.

    Args:
        dataset: The data.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Number of parts ``E``.
        seed: Seed of the run.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        seed: int,
    ) -> None:
        require_experiences(num_experiences)
        super().__init__(
            dataset=dataset,
            partition=partition,
            order=order,
            num_clients=num_clients,
            num_experiences=num_experiences,
            membership={
                "train": Cut(
                    num_examples=len(dataset.train.targets),
                    num_experiences=num_experiences,
                    rng=numpy_generator(seed, "cut"),
                ),
                "test": Everywhere(num_examples=len(dataset.test.targets)),
            },
            seed=seed,
        )
