"""Graph backbones that propagate far without a weight matrix per hop, or guard the deep ones."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.nn import APPNP as Propagation  # noqa: N811
from torch_geometric.nn import GCN2Conv, Linear, SGConv, SimpleConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from fedsim.backbones.graph_base import Graph, GraphBackbone, node_features


class APPNP(GraphBackbone):
    """One hidden layer, then personalised PageRank: ``Z' = (1 - alpha) Â Z + alpha H``, K times.

    A linear head commutes with the propagation, so backbone and head together are the paper's
    network, except that the head's bias is added after propagation instead of before. Weights are
    Glorot-uniform, biases zero.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of the features.
        num_hops: Propagation steps ``K``.
        alpha: Probability of a jump back to the node's own features, in ``[0, 1]``.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Gasteiger et al., Predict then Propagate, ICLR 2019, arXiv:1810.05997. The paper also drops
        links anew in every step; PyTorch Geometric's layer drops them cumulatively, which keeps
        the network at the majority class (measured on Cora), so none are dropped here.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_hops: int = 10,
        alpha: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        _check("APPNP", num_hops=num_hops, alpha=alpha)
        self.lin = Linear(
            node_features(input_shape, backbone="APPNP"),
            hidden,
            weight_initializer="glorot",
            bias_initializer="zeros",
        )
        self.propagation = Propagation(num_hops, alpha)

    def embed(self, data: Graph) -> Tensor:
        """The features, which have no activation after propagation, ``[m, d]``."""
        x = F.dropout(data.x, self.dropout, self.training)
        features: Tensor = self.propagation(self.activate(self.lin(x)), data.edge_index)
        return features

    def activate_rows(self, features: Tensor) -> Tensor:
        """Unchanged: a linear head follows."""
        return features


class SGC(GraphBackbone):
    """``Â^K X W + b``: propagation and one linear map, no activation.

    With a linear head the two maps are one, so backbone and head together are the paper's model.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of the features; at least the number of classes, or the model loses rank.
        num_hops: Propagation steps ``K``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Wu et al., Simplifying Graph Convolutional Networks, ICML 2019, arXiv:1902.07153.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], hidden: int = 128, num_hops: int = 2
    ) -> None:
        super().__init__(num_features=hidden)
        _check("SGC", num_hops=num_hops)
        self.layer = SGConv(node_features(input_shape, backbone="SGC"), hidden, K=num_hops)

    def embed(self, data: Graph) -> Tensor:
        """The features, ``[m, d]``."""
        features: Tensor = self.layer(data.x, data.edge_index)
        return features

    def activate_rows(self, features: Tensor) -> Tensor:
        """Unchanged: a linear head follows."""
        return features


class DAGNN(GraphBackbone):
    """One hidden layer, propagated 0 to K hops, every hop weighed node by node.

    ``Z_k = Â^k H``, ``s_k = sigmoid(Z_k w + b)``, ``out = sum_k s_k Z_k``. Depth costs no
    parameters, so deep networks do not collapse.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of the features.
        num_hops: Largest number of hops ``K``.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Liu et al., Towards Deeper Graph Neural Networks, KDD 2020, arXiv:2007.09296. There the
        scores ``s`` are read from class scores, here from the features, since the head follows.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 128,
        num_hops: int = 10,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        _check("DAGNN", num_hops=num_hops)
        self.num_hops = num_hops
        self.lin = nn.Linear(node_features(input_shape, backbone="DAGNN"), hidden)
        self.score = nn.Linear(hidden, 1)
        self.propagation = SimpleConv(aggr="sum")

    def embed(self, data: Graph) -> Tensor:
        """The features, which have no activation after propagation, ``[m, d]``."""
        links, weights = gcn_norm(data.edge_index, None, len(data.x), dtype=data.x.dtype)
        x = F.dropout(data.x, self.dropout, self.training)
        hops = [self.activate(self.lin(x))]
        for _ in range(self.num_hops):
            hops.append(self.propagation(hops[-1], links, weights))
        stack = torch.stack(hops, dim=1)  # [m, K + 1, d]
        scores = torch.sigmoid(self.score(stack))  # [m, K + 1, 1]
        return (scores * stack).sum(dim=1)

    def activate_rows(self, features: Tensor) -> Tensor:
        """Unchanged: a linear head follows."""
        return features


class GCNII(GraphBackbone):
    """Deep graph convolutions with a link back to the first layer and near-identity weights.

    ``H' = relu(((1 - alpha) Â H + alpha H_0)((1 - beta_l) I + beta_l W_l))`` with
    ``beta_l = log(theta / l + 1)``.

    Args:
        input_shape: Shape of one node's features, ``(D,)``.
        hidden: Width of every layer and of the features.
        num_layers: Number of convolutions.
        alpha: Share of the first layer in every layer, in ``[0, 1]``.
        theta: Strength of the weights, above 0.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Chen et al., Simple and Deep Graph Convolutional Networks, ICML 2020, arXiv:2007.02133.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: int = 64,
        num_layers: int = 16,
        alpha: float = 0.1,
        theta: float = 0.5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features=hidden, dropout=dropout)
        _check("GCNII", num_layers=num_layers, alpha=alpha)
        if theta <= 0:
            raise ValueError(f"GCNII: theta must be positive, got {theta}")
        self.lin = nn.Linear(node_features(input_shape, backbone="GCNII"), hidden)
        self.layers = nn.ModuleList(
            GCN2Conv(hidden, alpha, theta, layer, normalize=False)
            for layer in range(1, num_layers + 1)
        )

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GraphBackbone.embed`."""
        links, weights = gcn_norm(data.edge_index, None, len(data.x), dtype=data.x.dtype)
        x = F.dropout(data.x, self.dropout, self.training)
        first = F.relu(self.lin(x))
        start = F.dropout(first, self.dropout, self.training)
        return self.stacked(self.layers, start, lambda layer, h: layer(h, first, links, weights))


def _check(backbone: str, **values: float) -> None:
    """Raise for counts below 1 and for an ``alpha`` outside ``[0, 1]``."""
    for name, value in values.items():
        if name == "alpha" and not 0.0 <= value <= 1.0:
            raise ValueError(f"{backbone}: alpha must lie in [0, 1], got {value}")
        if name != "alpha" and value < 1:
            raise ValueError(f"{backbone}: {name} must be at least 1, got {value}")
