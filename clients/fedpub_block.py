"""Graph convolutions with other weights for every client, on one graph of all their subgraphs.

The subgraphs are the blocks of one graph and sparse features the blocks of one matrix; weights are
stacked, ``[k, ...]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.arrays import Params
from fedsim.backbones.graph import GCN
from fedsim.backbones.graph_products import SparseMatrix
from fedsim.client import Client
from fedsim.data import Inputs
from fedsim.scenario import Split


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


def joint_graph(client: Client, ids: Sequence[int]) -> Joint:
    """The clients' subgraphs as one, and the rows of every split."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    shards = {split: [client.scenario.shard(i, 0, split) for i in ids] for split in splits}
    graphs = [shard.inputs for shard in shards["train"]]
    graph = JointGraph(client.model.backbone, graphs)  # type: ignore[arg-type]
    rows = {
        split: graph.rows([s.inputs.mask for s in part], [s.targets for s in part])  # type: ignore[attr-defined]
        for split, part in shards.items()
    }
    return graph, rows


class Network:
    """A GCN with a linear head, with weights of its own for every client.

    Args:
        backbone: Gives the number of layers, the activation and dropout.
    """

    def __init__(self, backbone: GCN) -> None:
        self._layers = [f"backbone.layers.{i}" for i in range(len(backbone.layers))]
        self._activation, self._dropout = backbone.activation, backbone.dropout

    def logits(
        self, graph: JointGraph, weights: Params, rows: Rows | None, noise: "Noise | None"
    ) -> Tensor:
        """Scores of the rows, or of all nodes, ``[n, K]``.

        Args:
            graph: The clients' graphs.
            weights: ``[k, ...]`` by the model's names, masks multiplied in.
            rows: Which nodes, None for all.
            noise: Draws dropout; None in evaluation.
        """
        x = None
        for layer in self._layers:
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

    def embedding(self, graph: "MeanGraph", weights: Params) -> Tensor:
        """Mean over nodes of the last layer's output on one graph, ``[k, d]``.

        The mean commutes with the last layer, which then is one row per client.
        """
        first, last = self._layers[0], self._layers[-1]
        weight, bias = weights[f"{first}.lin.weight"], weights[f"{first}.bias"]
        if len(self._layers) == 1:
            return torch.einsum("i,koi->ko", graph.mean @ graph.x, weight) + bias
        flat = graph.mixed @ weight.reshape(-1, weight.shape[2]).t() + bias.reshape(-1)
        for layer in self._layers[1:-1]:
            weight, bias = weights[f"{layer}.lin.weight"], weights[f"{layer}.bias"]
            hidden = self._activation(flat).view(len(flat), len(weight), -1)
            projected = torch.einsum("nki,koi->nko", hidden, weight).flatten(1)
            flat = graph.links.rows @ projected + bias.reshape(-1)
        pooled = (graph.mean @ self._activation(flat)).view(len(weight), -1)
        weight, bias = weights[f"{last}.lin.weight"], weights[f"{last}.bias"]
        return torch.einsum("ki,koi->ko", pooled, weight) + bias

    def _activate(self, x: Tensor, sizes: Sequence[int], noise: "Noise | None") -> Tensor:
        active = self._activation(x)
        return active if noise is None else active * noise.like(active, sizes, self._dropout)


class MeanGraph:
    """A graph of which only means over its nodes are wanted.

    Args:
        backbone: Prepares its links.
        graph: With dense features.

    Attributes:
        links: Normalised links ``[m, m]``.
        x: Features ``[m, D]``.
        mixed: Features after one step over the links, ``[m, D]``.
        mean: What every node contributes to the mean after one step, ``[m]``.
    """

    def __init__(self, backbone: GCN, graph: Inputs) -> None:
        self.links: SparseMatrix = backbone.products.links(graph)
        self.x: Tensor = graph.x
        self.mixed: Tensor = self.links.rows @ graph.x
        self.mean = (
            self.links.columns @ torch.full((len(graph.x), 1), 1.0 / len(graph.x))
        ).flatten()


class Noise:
    """Dropout of several clients, each drawn as the per-client loop draws it.

    Args:
        seeds: Where each client's numbers begin.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._rngs = [torch.Generator().manual_seed(seed) for seed in seeds]

    def like(self, x: Tensor, sizes: Sequence[int], p: float) -> Tensor:
        """Factors for ``x``, whose rows belong to the clients in turn."""
        if p == 0.0:
            return torch.ones(())
        factors = torch.empty_like(x)
        for part, rng in zip(torch.split(factors, list(sizes)), self._rngs, strict=True):
            part.bernoulli_(1.0 - p, generator=rng)
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
