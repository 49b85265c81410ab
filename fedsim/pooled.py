"""All clients' data in one place: the upper bound of federated learning."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.cut import GraphCut
from fedsim.data import Batch, Indices, Shard
from fedsim.scenario import Scenario, Split

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


class Pooled(Scenario):
    """One client that holds what all clients of a scenario hold together.

    It meets the experiences in the scenario's order. Where only a share of the clients train in a
    round, it passes over that share of the pooled examples, drawn anew each time, so that it takes
    as many steps a round as the sampled clients take together.

    Args:
        scenario: Whose data is pooled.
        share: Share of the pooled examples in a pass, in ``(0, 1]``.

    Raises:
        ValueError: If only a share is wanted of a graph, which is trained on as a whole.
    """

    def __init__(self, *, scenario: Scenario, share: float) -> None:
        super().__init__()
        if share < 1 and isinstance(scenario, GraphCut):
            raise ValueError(
                "mode=central trains on a graph as a whole: set participation=1, so that a round"
                " of the federated runs does so too"
            )
        self._scenario = scenario
        self._share = share
        self.num_clients = 1
        self.num_experiences = scenario.num_experiences
        self.num_classes = scenario.num_classes
        self.input_shape = scenario.input_shape
        self.task_classes = scenario.task_classes
        self.has_validation = scenario.has_validation
        self.base_classes = scenario.base_classes

    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """See :meth:`Scenario.indices`; training examples once per holder."""
        self._check(client_id)
        if client_id is None or split != "train":
            return self._scenario.indices(None, experience, split)
        clients = range(self._scenario.num_clients)
        held = [self._scenario.indices(c, experience, split) for c in clients]
        return np.sort(np.concatenate(held))

    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.build`."""
        return self._scenario.build(indices, experience, split)

    def targets(self, split: Split) -> Tensor:
        """See :meth:`Scenario.targets`."""
        return self._scenario.targets(split)

    def classes(self, experience: int) -> list[int]:
        """See :meth:`Scenario.classes`."""
        return self._scenario.classes(experience)

    def shard(self, client_id: int | None, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.shard`."""
        if isinstance(self._scenario, GraphCut):
            return self._scenario.shard(None, experience, split)
        whole = super().shard(client_id, experience, split)
        if self._share == 1 or split != "train" or client_id is None:
            return whole
        return PartialShard(
            inputs=whole.inputs,
            targets=whole.targets,
            tasks=whole.tasks,
            indices=whole.indices,
            share=self._share,
        )

    def streams(self, client_id: int) -> "CLScenario":
        """See :meth:`Scenario.streams`."""
        if self._share < 1:
            raise ValueError(
                "mode=central with Avalanche's strategies passes over all data: set participation=1"
            )
        return super().streams(client_id)

    def _check(self, client_id: int | None) -> None:
        if client_id not in (None, 0):
            raise ValueError(f"all data is pooled at client 0, got client {client_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialShard(Shard):
    """A shard of which every pass takes a share, drawn anew.

    Attributes:
        share: Share of the examples in a pass, in ``(0, 1]``, rounded up to whole examples.
    """

    share: float

    def batches(self, batch_size: int, rng: torch.Generator | None = None) -> Iterator[Batch]:
        """See :meth:`Shard.batches`; without a generator, in stored order, all examples."""
        if rng is None:
            yield from Shard.batches(self, batch_size)
            return
        taken = torch.randperm(len(self), generator=rng)[: -int(-len(self) * self.share // 1)]
        part = Shard(
            inputs=self.inputs[taken],
            targets=self.targets[taken],
            tasks=None if self.tasks is None else self.tasks[taken],
            indices=self.indices[taken.numpy()],
        )
        yield from part.batches(batch_size)
