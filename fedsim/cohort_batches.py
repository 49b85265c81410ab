"""The batches of a block of clients, stacked step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.cohort_views import UnstackableError
from fedsim.data import Batch, Shard

IGNORED = -100  # the target that torch's cross-entropy leaves out of its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Batches that are computed together.

    Attributes:
        places: Which of the active clients they belong to, ascending.
        batch: Stacked, ``[g, n, ...]``.
        sizes: Examples of every client's batch, without padding.
    """

    places: list[int]
    batch: Batch
    sizes: list[int]

    @property
    def is_padded(self) -> bool:
        """Whether some batch is shorter than the others."""
        return min(self.sizes) < max(self.sizes)


Padding = Callable[[int, Batch, Batch], bool]
"""Whether a client's loss is the same for a batch and for the batch padded."""


class Feed:
    """Draws the next batch of every active client.

    Clients whose batches have equal shapes are computed together. Shorter batches are filled up
    with copies of their first example, whose target is then ``-100``, where the loss is known to
    leave such examples out.

    Args:
        batches: Every client's batches of the round.
    """

    def __init__(self, batches: Sequence[Iterator[Batch]]) -> None:
        self._batches = list(batches)
        self._may_pad: bool | None = None  # not known yet

    def forbid_padding(self) -> None:
        """From now on, compute batches of unequal sizes apart."""
        self._may_pad = False

    def draw(self, rows: Sequence[int]) -> dict[int, Batch]:
        """The next batch of each of these clients that has one."""
        drawn = ((row, next(self._batches[row], None)) for row in rows)
        return {row: batch for row, batch in drawn if batch is not None}

    def steps(self, batches: Sequence[Batch], padding: Padding) -> list[Step]:
        """The batches of the active clients, stacked in as few parts as their shapes allow.

        Args:
            batches: One of every active client.
            padding: Asked once, about the shortest batch that would have to be padded.

        Raises:
            UnstackableError: If inputs are no tensors, such as graphs.
        """
        if any(not isinstance(batch.inputs, Tensor) for batch in batches):
            raise UnstackableError("the inputs are no plain tensors")
        shapes = [_shape(batch) for batch in batches]
        everyone = list(range(len(batches)))
        if len(set(shapes)) == 1:
            return [_stacked(everyone, batches)]
        sizes = [len(batch.targets) for batch in batches]
        if len({shape[1:] for shape in shapes}) == 1 and self._may_pad is not False:
            if self._may_pad is None:
                shortest = batches[sizes.index(min(sizes))]
                padded = _padded(shortest, max(sizes))
                self._may_pad = padding(sizes.index(min(sizes)), shortest, padded)
            if self._may_pad:
                return [_stacked(everyone, batches, max(sizes))]
        parts: dict[object, list[int]] = {}
        for place, shape in enumerate(shapes):
            parts.setdefault(shape, []).append(place)
        return [_stacked(places, [batches[p] for p in places]) for places in parts.values()]


def whole_epochs(
    shards: Sequence[Shard], batch_size: int, epochs: int, seeds: Sequence[int]
) -> Iterator[Batch]:
    """Stacked batches ``[k, n, ...]`` of clients that hold equally many examples.

    The same batches as each shard's own :meth:`fedsim.data.Shard.batches`, drawn from generators of
    these seeds.
    """
    count = len(shards[0])
    size = batch_size or count
    inputs = torch.stack([shard.inputs for shard in shards])
    targets = torch.stack([shard.targets for shard in shards])
    tasks = _stack_tasks([shard.tasks for shard in shards])
    first = torch.arange(len(shards)).unsqueeze(1) * count  # row of every client's first example
    flat_inputs, flat_targets = inputs.flatten(0, 1), targets.flatten(0, 1)
    flat_tasks = None if tasks is None else tasks.flatten(0, 1)
    rng = torch.Generator()  # making one takes as long as drawing an order
    orders: list[list[Tensor]] = [[] for _ in range(epochs)]
    for seed in seeds:
        rng.manual_seed(seed)
        for drawn in orders:
            drawn.append(torch.randperm(count, generator=rng))
    for drawn in orders:
        order = torch.stack(drawn)
        for part in torch.split(order, size, dim=1):
            rows = (part + first).flatten()

            def pick(values: Tensor, rows: Tensor = rows) -> Tensor:
                return values.index_select(0, rows).view(len(shards), -1, *values.shape[1:])

            yield Batch(
                pick(flat_inputs),
                pick(flat_targets),
                None if flat_tasks is None else pick(flat_tasks),
            )


def _shape(batch: Batch) -> tuple[object, ...]:
    inputs: Tensor = batch.inputs
    rest = (inputs.shape[1:], inputs.dtype, batch.targets.shape[1:], batch.tasks is None)
    return (len(batch.targets), len(inputs) - len(batch.targets), *rest)


def _stacked(places: list[int], batches: Sequence[Batch], size: int | None = None) -> Step:
    sizes = [len(batch.targets) for batch in batches]
    if size is not None:
        batches = [_padded(batch, size) for batch in batches]
    batch = Batch(
        torch.stack([batch.inputs for batch in batches]),
        torch.stack([batch.targets for batch in batches]),
        _stack_tasks([batch.tasks for batch in batches]),
    )
    return Step(places=places, batch=batch, sizes=sizes)


def _padded(batch: Batch, size: int) -> Batch:
    missing = size - len(batch.targets)
    if missing == 0:
        return batch

    def filled(values: Tensor) -> Tensor:
        return torch.cat([values, values[:1].expand(missing, *values.shape[1:])])

    ignored = batch.targets.new_full((missing, *batch.targets.shape[1:]), IGNORED)
    return Batch(
        filled(batch.inputs),
        torch.cat([batch.targets, ignored]),
        None if batch.tasks is None else filled(batch.tasks),
    )


def _stack_tasks(tasks: Sequence[Tensor | None]) -> Tensor | None:
    told = [t for t in tasks if t is not None]
    return torch.stack(told) if len(told) == len(tasks) else None
