"""What a partition did to a graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.data import Indices
from scenarios.graph_metis import neighbor_lists

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReport:
    """One client's subgraph. Links are undirected and counted once; self-loops do not count.

    Attributes:
        client_id: The client.
        nodes: Its nodes.
        edges: Links between its nodes.
        cut_edges: Links from its nodes to others, which it does not see.
        train: Training nodes.
        val: Validation nodes.
        test: Test nodes.
        classes: Nodes of every class, ``K`` numbers.
        homophily: Share of its links that join nodes of one class, in ``[0, 1]``; NaN without any.
    """

    client_id: int
    nodes: int
    edges: int
    cut_edges: int
    train: int
    val: int
    test: int
    classes: tuple[int, ...]
    homophily: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReport:
    """All clients, and what was lost.

    Attributes:
        clients: One report per client.
        edges: Links of the whole graph.
        lost_edges: Links that no client holds; for disjoint parts the edge cut.
    """

    clients: tuple[ClientReport, ...]
    edges: int
    lost_edges: int


def describe(
    data: "Data", num_classes: int, members: Sequence[Indices], roles: Indices
) -> GraphReport:
    """Sizes, links, label distribution and homophily of every client's subgraph.

    Args:
        data: The whole graph.
        num_classes: Number of classes ``K``.
        members: Nodes of every client.
        roles: Split of every node: 0 train, 1 val, 2 test, ``[N]``.
    """
    offsets, target = neighbor_lists(data)
    source = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    once = source < target
    source, target = source[once], target[once]
    y = data.y.numpy()
    held = np.zeros(len(source), bool)
    clients = []
    for client_id, nodes in enumerate(members):
        inside = np.zeros(len(y), bool)
        inside[nodes] = True
        ends = inside[source].astype(np.int64) + inside[target]
        own = ends == 2
        held |= own
        train, val, test = np.bincount(roles[nodes][roles[nodes] >= 0], minlength=3).tolist()
        same = y[source[own]] == y[target[own]]
        report = ClientReport(
            client_id=client_id,
            nodes=len(nodes),
            edges=int(own.sum()),
            cut_edges=int((ends == 1).sum()),
            train=train,
            val=val,
            test=test,
            classes=tuple(np.bincount(y[nodes], minlength=num_classes).tolist()),
            homophily=float(same.mean()) if len(same) else float("nan"),
        )
        clients.append(report)
    return GraphReport(clients=tuple(clients), edges=len(source), lost_edges=int((~held).sum()))
