"""FED-PUB's embeddings of many models on one small random graph."""

import torch
from torch import Tensor

from fedsim.arrays import Params
from fedsim.backbones.graph import GCN
from fedsim.backbones.graph_products import SparseMatrix
from fedsim.cohort_graph import Network
from fedsim.data import Inputs


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


def mean_embedding(network: Network, graph: MeanGraph, weights: Params) -> Tensor:
    """Mean over nodes of the last layer's output on one graph, ``[k, d]``.

    The mean commutes with the last layer, which then is one row per client.

    Args:
        network: Whose layers.
        graph: The same for all clients.
        weights: ``[k, ...]`` by the model's names, masks multiplied in.
    """
    first, last = network.layers[0], network.layers[-1]
    weight, bias = weights[f"{first}.lin.weight"], weights[f"{first}.bias"]
    if len(network.layers) == 1:
        return torch.einsum("i,koi->ko", graph.mean @ graph.x, weight) + bias
    flat = graph.mixed @ weight.reshape(-1, weight.shape[2]).t() + bias.reshape(-1)
    for layer in network.layers[1:-1]:
        weight, bias = weights[f"{layer}.lin.weight"], weights[f"{layer}.bias"]
        hidden = network.activation(flat).view(len(flat), len(weight), -1)
        projected = torch.einsum("nki,koi->nko", hidden, weight).flatten(1)
        flat = graph.links.rows @ projected + bias.reshape(-1)
    pooled = (graph.mean @ network.activation(flat)).view(len(weight), -1)
    weight, bias = weights[f"{last}.lin.weight"], weights[f"{last}.bias"]
    return torch.einsum("ki,koi->ko", pooled, weight) + bias
