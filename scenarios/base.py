"""What all scenarios share: data set, partition over clients and cut over time."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset, Examples, Indices, Shard
from fedsim.scenario import Scenario, Split
from scenarios.membership import Membership
from scenarios.order import Order
from scenarios.partition import Partition


class PartitionedScenario(Scenario):
    """A data set dealt to clients and cut into experiences, both kept as index arrays only.

    A subclass chooses the cut and may change how the examples of an experience look
    (:meth:`transform`) or tell task labels (:meth:`tasks`).

    Args:
        dataset: The data.
        partition: Deals the data to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Number of experiences ``E``.
        membership: The cut over time, for either split.
        seed: Seed of the run.

    Raises:
        ValueError: If a count is not positive or the data does not suffice for the clients.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        partition: Partition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        membership: Mapping[Split, Membership],
        seed: int,
    ) -> None:
        super().__init__()
        require_experiences(num_experiences)
        self.dataset = dataset
        self.num_clients = num_clients
        self.num_experiences = num_experiences
        self.num_classes = dataset.num_classes
        self.input_shape = tuple(dataset.train.take(np.zeros(1, np.int64)).shape[1:])
        self._order = order
        self._membership = dict(membership)
        self._seed = seed
        self._holdings = partition.holdings(dataset, num_clients, seed)
        self._classes: dict[int, list[int]] = {}

    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """See :meth:`Scenario.indices`."""
        if not 0 <= experience < self.num_experiences:
            raise ValueError(
                f"experience must lie in [0, {self.num_experiences}), got {experience}"
            )
        if client_id is None:
            return self._membership[split].pool(self._holdings, split, experience)
        if not 0 <= client_id < self.num_clients:
            raise ValueError(f"client_id must lie in [0, {self.num_clients}), got {client_id}")
        return self._membership[split].pick(self._holdings.of(client_id, split), experience)

    def indices_of_each(
        self, client_ids: Sequence[int], experience: int, split: Split
    ) -> list[Indices]:
        """See :meth:`Scenario.indices_of_each`."""
        if getattr(self.indices, "__func__", None) is not PartitionedScenario.indices:
            return super().indices_of_each(client_ids, experience, split)  # a subclass's say
        pick = self._membership[split].pick
        return [pick(own, experience) for own in self._holdings.of_each(client_ids, split)]

    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.build`."""
        examples = self._examples(split)
        return Shard(
            inputs=self.transform(examples.take(indices), experience),
            targets=examples.targets[torch.from_numpy(indices)],
            tasks=self.tasks(indices, experience, split),
            indices=indices,
        )

    def transform(self, inputs: Tensor, experience: int) -> Tensor:
        """How inputs ``[n, ...]`` look in the experience; unchanged unless a subclass says so."""
        del experience
        return inputs

    def tasks(self, indices: Indices, experience: int, split: Split) -> Tensor | None:
        """Task labels ``[n]``, or None where none are told."""
        del indices, experience, split
        return None

    def experience_at(self, client_id: int, position: int) -> int:
        """See :meth:`Scenario.experience_at`."""
        return self._order.experience_at(client_id, position, self.num_experiences, self._seed)

    def targets(self, split: Split) -> Tensor:
        """See :meth:`Scenario.targets`."""
        return self._examples(split).targets

    def classes(self, experience: int) -> list[int]:
        """See :meth:`Scenario.classes`; counted once per experience."""
        if experience not in self._classes:
            indices = self.indices(None, experience, "train")
            counts = np.bincount(self.dataset.train.targets.numpy()[indices])
            self._classes[experience] = np.flatnonzero(counts).tolist()
        return list(self._classes[experience])

    def _examples(self, split: Split) -> Examples:
        return self.dataset.train if split == "train" else self.dataset.test


def require_experiences(num_experiences: int) -> None:
    """Raise unless there is at least one experience."""
    if num_experiences < 1:
        raise ValueError(f"num_experiences must be at least 1, got {num_experiences}")
