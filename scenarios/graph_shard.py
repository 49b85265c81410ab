"""What one client holds of a graph in one experience."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.data import Batch, Shard

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphShard(Shard):
    """A subgraph and the nodes of it that are trained or tested: the rows.

    Attributes:
        inputs: The subgraph: ``x`` ``[m, D]``, ``edge_index`` ``[2, L]``, ``y`` ``[m]``, original
            node numbers ``n_id`` ``[m]``, and the rows as ``mask``, bool ``[m]``.
        targets: Classes of the rows, ``[n]``.
        tasks: Task label of every row, ``[n]``, or None.
        indices: Original numbers of the rows, ``[n]``.
    """

    inputs: "Data"

    @property
    def nbytes(self) -> int:
        """Memory that the subgraph takes, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.inputs.to_dict().values())

    def batches(self, batch_size: int, rng: torch.Generator | None = None) -> Iterator[Batch]:
        """The whole subgraph as one batch, whatever the batch size; nothing without rows.

        Args:
            batch_size: Ignored: nodes cannot be cut from their neighbours, so an epoch is a step.
            rng: Ignored: there is no order.
        """
        del batch_size, rng
        if len(self):
            yield Batch(self.inputs, self.targets, self.tasks)


def rows_of(graph: "Data", mask: torch.Tensor, task: int | None) -> GraphShard:
    """A shard of a graph whose rows are the given nodes.

    Args:
        graph: With ``x``, ``edge_index``, ``y`` and ``n_id``; its tensors are shared.
        mask: The rows, bool ``[m]``.
        task: Task label of all rows, or None.
    """
    from torch_geometric.data import Data

    inputs = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y, n_id=graph.n_id, mask=mask)
    targets = graph.y[mask]
    return GraphShard(
        inputs=inputs,
        targets=targets,
        tasks=None if task is None else torch.full((len(targets),), task),
        indices=graph.n_id[mask].numpy(),
    )


def pooled(shards: Sequence[GraphShard]) -> GraphShard:
    """The disjoint union of shards: rows keep the links of their own client only."""
    from torch_geometric.data import Data

    graphs = [shard.inputs for shard in shards]
    sizes = np.array([len(graph.y) for graph in graphs])
    starts = (np.cumsum(sizes) - sizes).tolist()
    links = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)]
    inputs = Data(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat(links, dim=1),
        y=torch.cat([graph.y for graph in graphs]),
        n_id=torch.cat([graph.n_id for graph in graphs]),
        mask=torch.cat([graph.mask for graph in graphs]),
    )
    tasks = [shard.tasks for shard in shards if shard.tasks is not None]
    return GraphShard(
        inputs=inputs,
        targets=torch.cat([shard.targets for shard in shards]),
        tasks=torch.cat(tasks) if len(tasks) == len(shards) else None,
        indices=np.concatenate([shard.indices for shard in shards]),
    )
