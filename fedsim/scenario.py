"""What a scenario must offer: for every client, a stream of experiences cut on demand."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Indices, Shard

if TYPE_CHECKING:  # importing Avalanche takes seconds, so only those who need its streams pay
    from avalanche.benchmarks import CLScenario

Split = Literal["train", "val", "test"]  # only graph scenarios have validation data
CACHE_BYTES = 1 << 27  # shards kept in memory, least recently used first to go
_SHARD_OVERHEAD = 2048  # bytes that even an empty shard takes
_AHEAD_BYTES = CACHE_BYTES >> 2  # shards cut ahead at a time: none of them may go before it is used
_FEW = 8  # where all clients' shards take this many caches, few of them are in it when asked for
_LINE = 64  # bytes of a cache line; torch's own memory begins at one
_PASSING = 4  # experiences of which shards are held until the next are cut


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
        self._passing: dict[tuple[int, str], dict[int, Shard]] = {}  # cut ahead, not kept

    @abstractmethod
    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """Examples of a client in an experience, ascending; ``client_id=None`` means all clients'.

        Args:
            client_id: In ``[0, num_clients)``, or None for the pooled data of the experience.
            experience: In ``[0, num_experiences)``.
            split: Training or test part.
        """

    def indices_of_each(
        self, client_ids: Sequence[int], experience: int, split: Split
    ) -> list[Indices]:
        """The same for several clients."""
        return [self.indices(client_id, experience, split) for client_id in client_ids]

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
        if (ahead := self._passing.get((experience, split))) and client_id in ahead:
            return ahead[client_id]
        shard = self.build(self.indices(client_id, experience, split), experience, split)
        return self._keep(key, self._told(client_id, split, shard))

    def prefetch(self, client_ids: Sequence[int], experience: int, split: Split) -> None:
        """Cut the data of clients that are about to be asked for, all at once.

        Cutting few examples takes longer to begin than to do, and clients that come for the first
        time are many where a million are registered. No more is cut than the cache has room for.
        Where the cache has room for few of all clients, who comes back finds nothing in it: then
        the data is held until the next is cut ahead, which gets the same memory.

        Args:
            client_ids: In the order in which they will be asked for.
            experience: Number of the experience.
            split: Training or test part.
        """
        if type(self).shard is not Scenario.shard:
            return  # it has a way of its own
        new = [c for c in dict.fromkeys(client_ids) if (c, experience, split) not in self._cache]
        if len(new) < 2:
            return
        self._passing.pop((experience, split), None)
        size = 4 * math.prod(self.input_shape)
        parts: dict[int, Indices] = {}
        room = _AHEAD_BYTES
        for client_id, part in zip(new, self.indices_of_each(new, experience, split), strict=True):
            room -= len(part) * size + _SHARD_OVERHEAD
            if room < 0:
                break
            parts[client_id] = part
        if len(parts) < 2:
            return
        shards = self._cut(parts, experience, split)
        mean = (_AHEAD_BYTES - room) / len(shards)
        if self.num_clients * mean > _FEW * CACHE_BYTES:
            if len(self._passing) >= _PASSING:
                self._passing.clear()
            self._passing[experience, split] = {
                client_id: shard if _begins_a_line(shard.inputs) else _apart(shard)
                for client_id, shard in shards.items()
            }
            return
        for client_id, shard in shards.items():
            self._keep((client_id, experience, split), _apart(shard))

    def _cut(self, parts: Mapping[int, Indices], experience: int, split: Split) -> dict[int, Shard]:
        """The data of several clients, in memory that they may share."""
        whole = self.build(np.concatenate(list(parts.values())), experience, split)
        sizes = [len(part) for part in parts.values()]
        tasks = [None] * len(sizes) if whole.tasks is None else torch.split(whole.tasks, sizes)
        cut = zip(
            torch.split(whole.inputs, sizes), torch.split(whole.targets, sizes), tasks, strict=True
        )
        shards: dict[int, Shard] = {}
        for (client_id, part), (inputs, targets, task) in zip(parts.items(), cut, strict=True):
            shard = Shard(inputs=inputs, targets=targets, tasks=task, indices=part)
            shards[client_id] = self._told(client_id, split, shard)
        return shards

    def _told(self, client_id: int | None, split: Split, shard: Shard) -> Shard:
        """The shard with the labels that the client is told."""
        if split == "train" and client_id in self.flipped:
            return replace(shard, targets=self.num_classes - 1 - shard.targets)
        return shard

    def _keep(self, key: tuple[int | None, int, Split], shard: Shard) -> Shard:
        """Put the shard into the cache for the next time."""
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


def _apart(shard: Shard) -> Shard:
    """The shard in memory of its own: who keeps it keeps nothing else."""
    return replace(
        shard,
        inputs=shard.inputs.clone(),
        targets=shard.targets.clone(),
        tasks=None if shard.tasks is None else shard.tasks.clone(),
    )


def _begins_a_line(tensor: Tensor) -> bool:
    """Whether the tensor begins where one of its own would: rounding depends on that."""
    return tensor.data_ptr() % _LINE == 0
