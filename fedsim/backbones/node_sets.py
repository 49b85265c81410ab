"""Whole graphs as examples: the mean embedding of their nodes, by any graph backbone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from fedsim.backbones.graph_base import GraphBackbone


class MeanNodes(nn.Module):
    """The mean over a graph's nodes of what a graph backbone makes of them.

    ``z(G) = 1/|V| sum_v net.embed(G)_v``, the embedding before the last activation. An example is a
    matrix ``[m, D + m]`` with one row per node, so that graphs of up to ``m`` nodes lie in one
    tensor: ``D`` features, the first of which is 1, and the node's row of the adjacency matrix.
    Rows of zeros are no nodes. All graphs of a batch go through the backbone as one graph without
    links between them.

    Args:
        input_shape: ``(m, D + m)``.
        net: Builds the graph backbone from ``input_shape=(D,)``.

    Shapes:
        - **input:** ``[n, m, D + m]``.
        - **output:** ``[n, d]``; zeros for a graph without nodes.

    Raises:
        ValueError: If examples are no such matrices.
    """

    def __init__(self, *, input_shape: tuple[int, ...], net: Callable[..., GraphBackbone]) -> None:
        super().__init__()
        if len(input_shape) != 2 or input_shape[1] <= input_shape[0]:
            raise ValueError(
                "MeanNodes needs graphs as examples, matrices [m, D + m] of nodes with D features,"
                f" got shape {tuple(input_shape)}; choose dataset=graph_families"
            )
        self._width = input_shape[1] - input_shape[0]
        self.net = net(input_shape=(self._width,))
        self.num_features = self.net.num_features

    def forward(self, graphs: Tensor) -> Tensor:
        """Embeddings of the graphs, ``[n, d]``."""
        joined, owners = as_one_graph(graphs, self._width)
        nodes = self.net.embed(joined)
        sums = nodes.new_zeros(len(graphs), nodes.shape[1]).index_add_(0, owners, nodes)
        counts = torch.bincount(owners, minlength=len(graphs)).clamp_min(1)
        return sums / counts.unsqueeze(1)


def as_one_graph(graphs: Tensor, width: int) -> tuple[Data, Tensor]:
    """A batch of graphs as one graph of separate parts.

    Args:
        graphs: ``[n, m, D + m]``, see :class:`MeanNodes`.
        width: Number ``D`` of features.

    Returns:
        The graph, and which of the batch every node belongs to, ``[M]``.
    """
    features, adjacency = graphs[..., :width], graphs[..., width:]
    present = features[..., 0] > 0
    place = (present.flatten().cumsum(0) - 1).view_as(present)
    graph, source, target = adjacency.nonzero(as_tuple=True)
    links = torch.stack([place[graph, source], place[graph, target]])
    return Data(x=features[present], edge_index=links), present.nonzero()[:, 0]
