"""A random graph that all clients share and that holds nobody's data."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Data


def block_graph(
    num_features: int,
    rng: torch.Generator,
    *,
    num_blocks: int = 5,
    block_size: int = 100,
    p_in: float = 0.1,
    p_out: float = 0.0,
) -> "Data":
    """A stochastic block model with independent N(0, 1) node features.

    Args:
        num_features: Columns ``D`` of the features.
        rng: Draws links and features.
        num_blocks: Number of blocks.
        block_size: Nodes of a block.
        p_in: Probability of a link inside a block.
        p_out: Probability of a link between blocks.

    Returns:
        ``x`` ``[num_blocks * block_size, D]`` and ``edge_index`` ``[2, L]`` with both directions
        of every link.

    Raises:
        ValueError: If a number or a probability is out of range.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206:
        5 blocks of 100 nodes, 0.1 and 0.
    """
    from torch_geometric.data import Data

    if min(num_features, num_blocks, block_size) < 1:
        raise ValueError(
            "num_features, num_blocks and block_size must be at least 1, got"
            f" {num_features}, {num_blocks} and {block_size}"
        )
    if not (0.0 <= p_in <= 1.0 and 0.0 <= p_out <= 1.0):
        raise ValueError(f"p_in and p_out must lie in [0, 1], got {p_in} and {p_out}")
    num_nodes = num_blocks * block_size
    block = torch.arange(num_nodes) // block_size
    chance = torch.where(block[:, None] == block[None, :], p_in, p_out)
    drawn = torch.rand(num_nodes, num_nodes, generator=rng) < chance
    linked = drawn.triu(1)
    edge_index = (linked | linked.t()).nonzero().t().contiguous()
    return Data(x=torch.randn(num_nodes, num_features, generator=rng), edge_index=edge_index)
