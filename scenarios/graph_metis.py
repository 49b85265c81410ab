"""METIS partitions, and the neighbour lists that they are made from."""

from typing import TYPE_CHECKING

import numpy as np

from fedsim.data import Indices
from scenarios.graph_recorded import recorded

if TYPE_CHECKING:
    from torch_geometric.data import Data


def metis(
    data: "Data", num_parts: int, use_recorded: bool = True, nodes: Indices | None = None
) -> Indices:
    """The part of every node by METIS: k-way, fewest links cut, default options.

    Directions, repeated links and self-loops of the graph are ignored.

    Args:
        data: The graph.
        num_parts: Number of parts.
        use_recorded: See :class:`scenarios.graph_partition.Metis`.
        nodes: Cut the subgraph of these nodes, ascending; None is the whole graph.

    Returns:
        Parts in ``[0, num_parts)``, ``[N]`` or as many as ``nodes``.

    Raises:
        ModuleNotFoundError: If pymetis is needed and not installed.
        ValueError: If METIS leaves a part empty.
    """
    offsets, neighbors = neighbor_lists(data, nodes)
    if num_parts == 1:
        return np.zeros(len(offsets) - 1, np.int64)
    known = recorded(offsets, neighbors, num_parts) if use_recorded else None
    if known is not None:
        return known
    try:
        import pymetis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "partitions by METIS need the package pymetis, which is not installed:"
            " pip install pymetis"
        ) from error
    cut = pymetis.part_graph(num_parts, xadj=offsets, adjncy=neighbors, recursive=False)
    parts = np.asarray(cut.vertex_part, np.int64)
    empty = num_parts - len(np.unique(parts))
    if empty:
        raise ValueError(
            f"METIS left {empty} of {num_parts} parts of {len(parts)} nodes empty; use fewer"
            " clients"
        )
    return parts


def neighbor_lists(data: "Data", nodes: Indices | None = None) -> tuple[Indices, Indices]:
    """Neighbours of every node in compressed rows, undirected, sorted, without self-loops.

    Args:
        data: The graph.
        nodes: Restrict it to these nodes, renumbered in this order; None keeps all.

    Returns:
        Where each node's neighbours begin, ``[N + 1]``, and the neighbours, ``[2 L]``.
    """
    num_nodes = len(data.y)
    source, target = data.edge_index.numpy()
    if nodes is not None:
        place = np.full(num_nodes, -1, np.int64)
        place[nodes] = np.arange(len(nodes))
        source, target, num_nodes = place[source], place[target], len(nodes)
    keep = (source != target) & (source >= 0) & (target >= 0)
    source, target = source[keep], target[keep]
    both = np.concatenate((source * num_nodes + target, target * num_nodes + source))
    pairs = np.unique(both)
    counts = np.bincount(pairs // num_nodes, minlength=num_nodes)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))), pairs % num_nodes
