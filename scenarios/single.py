"""Plain federated learning: one experience with all the data."""

from fedsim.data import Dataset
from scenarios.base import PartitionedScenario
from scenarios.membership import Everywhere
from scenarios.order import Order
from scenarios.partition import Partition


class Single(PartitionedScenario):
    """All data in one experience.

    Args:
        dataset: The data.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences; there is only one.
        num_clients: Number of clients ``C``.
        num_experiences: Always 1; named so that a clock can refer to it.
        seed: Seed of the run.

    Raises:
        ValueError: If ``num_experiences`` is not 1.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int = 1,
        seed: int,
    ) -> None:
        if num_experiences != 1:
            raise ValueError(
                f"scenario=single has 1 experience, got num_experiences={num_experiences};"
                " use scenario=data_incremental for more"
            )
        super().__init__(
            dataset=dataset,
            partition=partition,
            order=order,
            num_clients=num_clients,
            num_experiences=1,
            membership={
                "train": Everywhere(num_examples=len(dataset.train.targets)),
                "test": Everywhere(num_examples=len(dataset.test.targets)),
            },
            seed=seed,
        )
