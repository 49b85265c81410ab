"""What graph backbones share: rows of the mask, the last activation, and checks."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Graph = Any  # a torch_geometric Data


class GraphBackbone(nn.Module):
    """A network over the nodes of a graph that gives the features of the rows asked for.

    ``forward`` is ``dropout(activation(embed(data)[mask]))``, so that a linear head on it makes
    the usual node classifier, while :meth:`embed` is what comes before the last activation.

    Args:
        num_features: Width ``d`` of the features.
        dropout: Probability of dropping a feature in training, in ``[0, 1)``.
        activation: Applied between layers and to the features.

    Shapes:
        - **input:** a graph with ``x`` ``[m, D]``, ``edge_index`` ``[2, L]`` and, optionally, the
          rows ``mask``, bool ``[m]``.
        - **output:** ``[n, d]`` for the ``n`` rows of the mask, ``[m, d]`` without a mask.

    Raises:
        ValueError: If the width is not positive or ``dropout`` is out of range.
    """

    def __init__(
        self,
        *,
        num_features: int,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if num_features < 1:
            raise ValueError(f"{name}: hidden must be at least 1, got {num_features}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{name}: dropout must lie in [0, 1), got {dropout}")
        self.num_features = num_features
        self.dropout = dropout
        self.activation = activation

    def embed(self, data: Graph) -> Tensor:
        """Output of the last layer before its activation, for all nodes, ``[m, d]``."""
        raise NotImplementedError

    def activate(self, features: Tensor) -> Tensor:
        """The activation and dropout after every layer."""
        return F.dropout(self.activation(features), self.dropout, self.training)

    def activate_rows(self, features: Tensor) -> Tensor:
        """What makes features of the rows' embeddings; :meth:`activate` unless overridden."""
        return self.activate(features)

    def forward(self, data: Graph) -> Tensor:
        """Features of the rows, ``[n, d]``."""
        return self.activate_rows(rows(self.embed(data), data))

    def stacked(
        self, layers: nn.ModuleList, x: Tensor, apply: Callable[[nn.Module, Tensor], Tensor]
    ) -> Tensor:
        """The layers one after another, with activation and dropout between them."""
        for position, layer in enumerate(layers):
            x = apply(layer, self.activate(x) if position else x)
        return x


def rows(values: Tensor, data: Graph) -> Tensor:
    """The rows of the graph's mask; all of them without a mask."""
    mask = getattr(data, "mask", None)
    return values if mask is None else values[mask]


def node_features(input_shape: tuple[int, ...], *, backbone: str) -> int:
    """The width ``D`` of the node features.

    Raises:
        ValueError: If the examples are no nodes.
    """
    if len(input_shape) != 1:
        raise ValueError(
            f"{backbone} needs nodes with features of shape (D,), got examples of shape"
            f" {tuple(input_shape)}; choose a graph, e.g. dataset=digits_graph"
        )
    return input_shape[0]


def layer_widths(
    input_shape: tuple[int, ...], hidden: int, num_layers: int, *, backbone: str
) -> list[int]:
    """Widths before and after every layer: ``[D, hidden, hidden, ...]``.

    Raises:
        ValueError: If the examples are no nodes or there is no layer.
    """
    if num_layers < 1:
        raise ValueError(f"{backbone}: num_layers must be at least 1, got {num_layers}")
    return [node_features(input_shape, backbone=backbone)] + [hidden] * num_layers
