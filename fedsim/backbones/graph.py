"""Graph backbones that stack one kind of layer."""

from itertools import pairwise

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from fedsim.backbones.graph_base import Graph, GraphBackbone, layer_widths
from fedsim.backbones.graph_products import GraphProducts


class GCN(GraphBackbone):
    """Graph convolutions, ``H' = D^-1/2 (A + I) D^-1/2 H W + b``, with ReLU and dropout between.

    Weights are Glorot-uniform, biases zero. With two layers and a linear head this is the network
    of FED-PUB, whose functional embedding reads :meth:`embed`.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features.
        num_layers: Number of convolutions.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR
        2017, arXiv:1609.02907; the head follows the second convolution instead of being it, as in
        Baek et al., ICML 2023, arXiv:2206.10206.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        widths = layer_widths(input_shape, hidden, num_layers, backbone="GCN")
        self.products = GraphProducts()
        self.layers = nn.ModuleList(
            GCNConv(before, after, normalize=False) for before, after in pairwise(widths)
        )

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`; links and sparse features are prepared once a graph."""
        links = self.products.links(data)
        x: Tensor = data.x
        for position, layer in enumerate(self.layers):
            weight, bias = convolution(layer)
            if position == 0:
                projected = self.products.project(data, weight)
            else:
                projected = self.activate(x) @ weight.t()
            x = links @ projected + bias
        return x


def convolution(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight ``[d', d]`` and bias ``[d']`` of a graph convolution, masks multiplied in."""
    weight: Tensor = layer.lin.weight  # type: ignore[union-attr,assignment]
    bias: Tensor = layer.bias  # type: ignore[assignment]
    return weight, bias


class GAT(GraphBackbone):
    """Graph attention layers with ELU and dropout between; the heads are concatenated.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features, a multiple of ``heads``.
        num_layers: Number of layers.
        heads: Attention heads of a layer.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.
        attention_dropout: The same for a link's attention.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Velickovic et al., Graph Attention Networks, ICLR 2018, arXiv:1710.10903.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_layers: int = 2,
        heads: int = 8,
        dropout: float = 0.5,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout, activation=F.elu)
        if heads < 1 or hidden % heads:
            raise ValueError(f"GAT: hidden={hidden} must be a multiple of heads={heads}")
        if not 0.0 <= attention_dropout < 1.0:
            raise ValueError(f"GAT: attention_dropout must lie in [0, 1), got {attention_dropout}")
        widths = layer_widths(input_shape, hidden, num_layers, backbone="GAT")
        self.layers = nn.ModuleList(
            GATConv(before, after // heads, heads=heads, dropout=attention_dropout)
            for before, after in pairwise(widths)
        )

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`."""
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x, data.edge_index))


class GraphSAGE(GraphBackbone):
    """``H' = W_1 H + W_2 mean of the neighbours' H``, with ReLU and dropout between the layers.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features.
        num_layers: Number of layers.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Hamilton et al., Inductive Representation Learning on Large Graphs, NeurIPS 2017,
        arXiv:1706.02216; full neighbourhoods instead of samples.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        widths = layer_widths(input_shape, hidden, num_layers, backbone="GraphSAGE")
        self.layers = nn.ModuleList(SAGEConv(*pair) for pair in pairwise(widths))

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`."""
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x, data.edge_index))


class GIN(GraphBackbone):
    """``H' = MLP(H + sum of the neighbours' H)``, with ReLU and dropout between the layers.

    The MLP has two layers and no batch normalisation, whose running statistics clients with
    different data would disagree about.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features.
        num_layers: Number of layers.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Xu et al., How Powerful are Graph Neural Networks?, ICLR 2019, arXiv:1810.00826.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        widths = layer_widths(input_shape, hidden, num_layers, backbone="GIN")
        self.layers = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after)))
            for before, after in pairwise(widths)
        )

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`."""
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x, data.edge_index))


class GraphMLP(GraphBackbone):
    """Fully connected layers on each node alone, blind to the links, with ReLU and dropout between.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features.
        num_layers: Number of layers.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        widths = layer_widths(input_shape, hidden, num_layers, backbone="GraphMLP")
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`."""
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x))
