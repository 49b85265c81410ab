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
from fedsim.data import Inputs


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
        self._starts = [0, *torch.tensor(self.sizes).cumsum(0).tolist()]

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
            return self._features.project(weight)
        parts = zip(self._dense, weight, strict=True)
        return torch.cat([x @ w.t() for x, w in parts])

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Every client's rows of ``x`` times its weight, ``[m, d']`` for weights ``[k, d', d]``."""
        return per_client(x, weight, self.sizes)


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

    def embedding(self, links: SparseMatrix, x: Tensor, weights: Params) -> Tensor:
        """Mean over nodes of the last layer's output on one graph, ``[k, d]``.

        The mean commutes with the last layer, which then is one row per client.
        """
        mean = links.columns @ torch.full((len(x), 1), 1.0 / len(x))  # every node's share in it
        hidden = None
        for layer in self._layers[:-1]:
            weight, bias = weights[f"{layer}.lin.weight"], weights[f"{layer}.bias"]
            if hidden is None:
                flat = x @ weight.reshape(-1, weight.shape[2]).t()
            else:
                flat = torch.einsum("nki,koi->nko", hidden, weight).flatten(1)
            flat = links.rows @ flat + bias.reshape(-1)
            hidden = self._activation(flat).view(len(x), *bias.shape)
        last = self._layers[-1]
        weight, bias = weights[f"{last}.lin.weight"], weights[f"{last}.bias"]
        if hidden is None:
            return torch.einsum("n,ni,koi->ko", mean.flatten(), x, weight) + bias
        pooled = (mean.t() @ hidden.flatten(1)).view(bias.shape[0], -1)
        return torch.einsum("ki,koi->ko", pooled, weight) + bias

    def _activate(self, x: Tensor, sizes: Sequence[int], noise: "Noise | None") -> Tensor:
        active = self._activation(x)
        return active if noise is None else active * noise.like(active, sizes, self._dropout)


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
        for part, rng in zip(factors.split(list(sizes)), self._rngs, strict=True):
            part.bernoulli_(1.0 - p, generator=rng)
        return factors.div_(1.0 - p)


def per_client(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of ``x`` ``[m, d]`` times their client's weight ``[k, d', d]``, ``[m, d']``."""
    parts = zip(x.split(list(sizes)), weight, strict=True)
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
