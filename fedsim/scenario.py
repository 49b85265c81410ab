"""What a scenario must offer: for every client, a stream of experiences cut on demand."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fedsim.data import Indices, Shard

if TYPE_CHECKING:  # importing Avalanche takes seconds, so only those who need its streams pay
    from avalanche.benchmarks import CLScenario

Split = Literal["train", "val", "test"]  # only graph scenarios have validation data
CACHE_BYTES = 1 << 27  # shards kept in memory, least recently used first to go
_SHARD_OVERHEAD = 2048  # bytes that even an empty shard takes


class Scenario(ABC):
    """Data set x partition over clients x order over time.

    A subclass says which examples a client holds (:meth:`indices`) and how to make tensors of them
    (:meth:`build`). Experiences are named by their number in the scenario, ``0..E-1``; a client
    meets them in the order that :meth:`experience_at` gives, so ``position`` (how many
    experiences it has had) and ``experience`` (which one) are different things.

    Attributes:
        num_clients: Registered clients ``C``.
        num_experiences: Experiences ``E`` of the scenario, and so of every client's stream.
        num_classes: Classes ``K`` over all experiences.
        input_shape: Shape of one example, without the batch dimension.
        task_classes: Bool ``[E, K]``, the classes among which an example of task ``e`` is
            classified, where task labels are told at test time; else None.
        has_validation: Whether there is data for the split ``val``.
        base_classes: Classes ``0..base_classes-1`` are known before the stream begins; 0 for none.
        evaluation_points: Whether base, known and new classes are also tested before and after
            every merge, and costs per class noted, see :class:`fedsim.fieldtest.FieldTest`.
        flipped: Clients that train on label ``K - 1 - y`` where it is ``y``.
    """

    num_clients: int
    num_experiences: int
    num_classes: int
    input_shape: tuple[int, ...]
    task_classes: Tensor | None = None
    has_validation: bool = False
    base_classes: int = 0
    evaluation_points: bool = False
    flipped: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[int | None, int, str], Shard] = OrderedDict()
        self._cached_bytes = 0

    @abstractmethod
    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """Examples of a client in an experience, ascending; ``client_id=None`` means all clients'.

        Args:
            client_id: In ``[0, num_clients)``, or None for the pooled data of the experience.
            experience: In ``[0, num_experiences)``.
            split: Training or test part.
        """

    @abstractmethod
    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """The tensors of the given examples, as they look in this experience."""

    def experience_at(self, client_id: int, position: int) -> int:
        """Which experience the client meets at this position of its stream."""
        del client_id
        return position

    def classes(self, experience: int) -> list[int]:
        """Classes that occur in the experience, over all clients, ascending."""
        indices = self.indices(None, experience, "train")
        return sorted(set(self.targets("train")[torch.from_numpy(indices)].tolist()))

    @abstractmethod
    def targets(self, split: Split) -> Tensor:
        """Targets of the whole data set, ``[N]``; ``indices`` point into it."""

    def shard(self, client_id: int | None, experience: int, split: Split) -> Shard:
        """The client's data of an experience, from a bounded cache."""
        key = (client_id, experience, split)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        shard = self.build(self.indices(client_id, experience, split), experience, split)
        if split == "train" and client_id in self.flipped:
            shard = replace(shard, targets=self.num_classes - 1 - shard.targets)
        self._cache[key] = shard
        self._cached_bytes += shard.nbytes + _SHARD_OVERHEAD
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes + _SHARD_OVERHEAD
        return shard

    def streams(self, client_id: int) -> "CLScenario":
        """The client's stream as an Avalanche scenario with ``train_stream`` and ``test_stream``.

        Experience ``i`` of either stream is the client's ``i``-th position; its ``task_labels``
        tell the scenario's experience where the scenario tells task labels, else 0.
        """
        from fedsim.streams import avalanche_scenario

        return avalanche_scenario(self, client_id)
