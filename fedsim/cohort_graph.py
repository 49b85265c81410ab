"""Graph convolutions with other weights for every client, on one graph of all their subgraphs.

The subgraphs are the blocks of one graph and sparse features the blocks of one matrix; weights are
stacked, ``[k, ...]``. All of it is on the CPU.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.arrays import Params
from fedsim.backbones.graph import GCN
from fedsim.backbones.graph_products import SparseMatrix
from fedsim.cohort_views import UnstackableError
from fedsim.data import Inputs
from fedsim.scenario import Split
from fedsim.scoring import Score, measured
from fedsim.wire import Metrics

if TYPE_CHECKING:  # it is imported by the modules that run clients, which know them already
    from fedsim.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Nodes of one split.

    Attributes:
        index: Their rows in the joint graph, client by client, ``[n]``.
        owner: Whose they are, ``[n]``.
        counts: How many every client has, ``[k]``.
        targets: Classes, ``[n]``.
    """

    index: Tensor
    owner: Tensor
    counts: Tensor
    targets: Tensor


class JointGraph:
    """The subgraphs of several clients as the blocks of one graph.

    Args:
        backbone: Prepares links and features.
        graphs: One per client.
    """

    def __init__(self, backbone: GCN, graphs: Sequence[Inputs]) -> None:
        self.sizes = [len(graph.x) for graph in graphs]
        self.owner = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(self.sizes))
        links = [backbone.products.links(graph) for graph in graphs]
        self.links = block_diagonal(links)
        features = [backbone.products.features(graph) for graph in graphs]
        sparse = [f for f in features if f is not None]
        self._features = block_diagonal(sparse) if len(sparse) == len(features) else None
        self._dense = [graph.x for graph in graphs]
        self._rooms: dict[str, Tensor] = {}
        self._merged: JointGraph | None = None

    def room(self, name: str, shape: torch.Size) -> Tensor:
        """Memory for numbers that nobody keeps, the same every round: fresh pages cost time."""
        if name not in self._rooms or self._rooms[name].shape != shape:
            self._rooms[name] = torch.empty(shape)
        return self._rooms[name]

    def rows(self, masks: Sequence[Tensor], targets: Sequence[Tensor]) -> Rows:
        """The nodes of every client's mask ``[m]`` with their classes."""
        counts = torch.tensor([len(target) for target in targets])
        return Rows(
            index=torch.cat(list(masks)).nonzero().flatten(),
            owner=torch.repeat_interleave(torch.arange(len(counts)), counts),
            counts=counts,
            targets=torch.cat(list(targets)),
        )

    def merged(self) -> "JointGraph":
        """The same nodes as those of one client, for weights ``[1, ...]`` that all share."""
        if self._merged is None:
            one = self._merged = copy.copy(self)
            one.sizes, one.owner, one._rooms = [sum(self.sizes)], torch.zeros_like(self.owner), {}
            if self._features is None:
                one._dense = [torch.cat(self._dense)]
            else:
                one._features = _one_below_another(self._features, self._dense[0].shape[1])
        return self._merged

    def project(self, weight: Tensor) -> Tensor:
        """Every client's features times its weight, ``[m, d]`` for weights ``[k, d, D]``."""
        if self._features is not None:
            size = (weight.shape[0] * weight.shape[2], weight.shape[1])
            return self._features.project(weight, self.room("projection", torch.Size(size)))
        parts = zip(self._dense, weight, strict=True)
        return torch.cat([x @ w.t() for x, w in parts])

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Every client's rows of ``x`` times its weight, ``[m, d']`` for weights ``[k, d', d]``."""
        return per_client(x, weight, self.sizes)


Joint = tuple[JointGraph, dict[Split, Rows]]


class JointGraphs:
    """Joint graphs of the blocks that came last: most blocks come again in the next round.

    Args:
        client: Serves all clients; its scenario has one experience.
    """

    _KEPT = 4

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._made: OrderedDict[tuple[int, ...], Joint] = OrderedDict()

    def of(self, ids: Sequence[int]) -> Joint:
        """The clients' subgraphs as one, and the rows of every split.

        Raises:
            UnstackableError: If a client is tested on another graph than it trains on.
        """
        key = tuple(ids)
        if key not in self._made:
            self._made[key] = self._joined(key)
            if len(self._made) > self._KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def forget(self, ids: Sequence[int]) -> None:
        """Free the graph of these clients."""
        self._made.pop(tuple(ids), None)

    def _joined(self, ids: Sequence[int]) -> Joint:
        splits: tuple[Split, ...] = ("train", "val", "test")
        scenario = self._client.scenario
        shards = {split: [scenario.shard(i, 0, split) for i in ids] for split in splits}
        graphs = [shard.inputs for shard in shards["train"]]
        for split in splits:
            for shard, graph in zip(shards[split], graphs, strict=True):
                same = shard.inputs.x is graph.x and shard.inputs.edge_index is graph.edge_index  # type: ignore[attr-defined]
                if not same:
                    raise UnstackableError("a client is tested on another graph")
        joint = JointGraph(self._client.model.backbone, graphs)  # type: ignore[arg-type]
        rows = {
            split: joint.rows([s.inputs.mask for s in part], [s.targets for s in part])  # type: ignore[attr-defined]
            for split, part in shards.items()
        }
        return joint, rows


def tested(client: "Client", joint: Joint, scores: Tensor) -> list[Metrics]:
    """What :meth:`fedsim.client.Client.measure` says of every client.

    Args:
        client: Serves all of them.
        joint: Their graphs as one.
        scores: Of all nodes of the joint graph, ``[m, K]``.
    """
    rows = joint[1]
    splits: list[Split] = ["test"]
    if client.setting.evaluation.validates:
        splits.append("val")
    found: dict[Split, list[Score]] = {}
    for split in splits:
        marks = client.candidates.marks(scores[rows[split].index], rows[split].targets, 0)
        each = torch.stack([mark.double() for mark in marks], dim=1)
        sums = torch.zeros(len(rows[split].counts), each.shape[1], dtype=torch.float64)
        sums.index_add_(0, rows[split].owner, each)
        found[split] = [Score.of(row) for row in sums.tolist()]
    return [
        measured({s: ([found[s][place]], [int(rows[s].counts[place])]) for s in splits})
        for place in range(len(rows["test"].counts))
    ]


class Network:
    """A GCN with a linear head, with weights of its own for every client.

    Args:
        backbone: Gives the number of layers, the activation and dropout.
    """

    def __init__(self, backbone: GCN) -> None:
        self.layers = [f"backbone.layers.{i}" for i in range(len(backbone.layers))]
        self.activation, self._dropout = backbone.activation, backbone.dropout

    def logits(
        self, graph: JointGraph, weights: Params, rows: Rows | None, noise: "GraphDropout | None"
    ) -> Tensor:
        """Scores of the rows, or of all nodes, ``[n, K]``.

        Args:
            graph: The clients' graphs.
            weights: ``[k, ...]`` by the model's names, masks multiplied in.
            rows: Which nodes, None for all.
            noise: Draws dropout; None in evaluation.
        """
        x = None
        for layer in self.layers:
            weight = weights[f"{layer}.lin.weight"]
            if x is None:
                projected = graph.project(weight)
            else:
                projected = graph.multiply(self._activate(x, graph.sizes, noise), weight)
            x = graph.links @ projected + weights[f"{layer}.bias"][graph.owner]
        if x is None:
            raise RuntimeError("a GCN has at least one layer")
        sizes, owner = graph.sizes, graph.owner
        if rows is not None:
            x, sizes, owner = x[rows.index], rows.counts.tolist(), rows.owner
        scores = per_client(self._activate(x, sizes, noise), weights["head.weight"], sizes)
        return scores + weights["head.bias"][owner]

    def _activate(self, x: Tensor, sizes: Sequence[int], noise: "GraphDropout | None") -> Tensor:
        active = self.activation(x)
        return active if noise is None else active * noise.like(active, sizes, self._dropout)


class GraphDropout:
    """Dropout of several clients, each drawn as the per-client loop draws it.

    Args:
        generators: Every client's, in the state that torch's own would be in.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def like(self, x: Tensor, sizes: Sequence[int], p: float) -> Tensor:
        """Factors for ``x``, whose rows belong to the clients in turn."""
        if p == 0.0:
            return torch.ones(())
        factors = torch.empty_like(x)
        parts = torch.split(factors, list(sizes))
        for part, generator in zip(parts, self._generators, strict=True):
            part.bernoulli_(1.0 - p, generator=generator)
        return factors.div_(1.0 - p)


def per_client(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of ``x`` ``[m, d]`` times their client's weight ``[k, d', d]``, ``[m, d']``."""
    parts = zip(torch.split(x, list(sizes)), weight, strict=True)
    return torch.cat([part @ w.t() for part, w in parts])


def block_diagonal(matrices: Sequence[SparseMatrix]) -> SparseMatrix:
    """The matrices as the blocks of one."""
    return SparseMatrix(
        rows=_diagonal([m.rows for m in matrices]),
        columns=_diagonal([m.columns for m in matrices]),
    )


def _one_below_another(diagonal: SparseMatrix, width: int) -> SparseMatrix:
    """The blocks of a block diagonal matrix, each ``width`` wide, as the rows of one as wide."""
    rows = diagonal.rows
    stacked = torch.sparse_csr_tensor(
        rows.crow_indices(), rows.col_indices() % width, rows.values(), (rows.shape[0], width),
        check_invariants=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that the format is in beta
        columns = stacked.to_sparse_coo().t().coalesce().to_sparse_csr()  # type: ignore[no-untyped-call]
    return SparseMatrix(rows=stacked, columns=columns)


def _diagonal(parts: Sequence[Tensor]) -> Tensor:
    pointers, columns = [torch.zeros(1, dtype=torch.int64)], []
    height = width = entries = 0
    for part in parts:
        pointers.append(part.crow_indices()[1:] + entries)
        columns.append(part.col_indices() + width)
        entries += len(part.values())
        height, width = height + part.shape[0], width + part.shape[1]
    values = torch.cat([part.values() for part in parts])
    return torch.sparse_csr_tensor(
        torch.cat(pointers), torch.cat(columns), values, (height, width), check_invariants=False
    )
