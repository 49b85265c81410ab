"""Communities of clients that agree on what belongs together and not on what it is called."""

import torch

from fedsim.seeding import generator
from scenarios.graph_data import GraphDataset


def conflicting_communities(
    *,
    communities: int = 3,
    clients_per_community: int = 4,
    nodes: int = 200,
    num_classes: int = 6,
    num_features: int = 32,
    noise: float = 1.0,
    links: tuple[float, float] = (0.1, 0.02),
    seed: int = 0,
) -> GraphDataset:
    """One graph per client: clusters of nodes that every community labels in its own way.

    Cluster ``c`` of community ``g`` has class ``(c + g * K / G) mod K``: the features and links of
    all clients come from one distribution, the labels of two communities contradict each other. A
    mean over everybody is right in no community.

    Args:
        communities: Number of communities ``G``, at most ``num_classes``.
        clients_per_community: Clients of each; client ``i`` is in community ``i // clients``.
        nodes: Nodes of every client.
        num_classes: Number of clusters and classes ``K``.
        num_features: Columns ``D`` of the features.
        noise: Standard deviation of a node's features around its cluster's N(0, 1) centre.
        links: Probabilities of a link inside a cluster and between clusters.
        seed: Draws everything.

    Returns:
        The graphs as one, with the client as group.

    Raises:
        ValueError: If a count or a probability is out of range.
    """
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    if not 1 <= communities <= num_classes or min(clients_per_community, nodes, num_features) < 1:
        raise ValueError(
            "communities must lie in [1, num_classes] and the other counts be at least 1, got"
            f" communities={communities}, num_classes={num_classes},"
            f" clients_per_community={clients_per_community}, nodes={nodes} and"
            f" num_features={num_features}"
        )
    p_in, p_out = links
    if not (0.0 <= p_out <= 1.0 and 0.0 <= p_in <= 1.0):
        raise ValueError(f"links must be probabilities in [0, 1], got {p_in} and {p_out}")
    rng = generator(seed, "conflicting communities")
    centres = torch.randn(num_classes, num_features, generator=rng)
    clients = communities * clients_per_community
    cluster = torch.randint(num_classes, (clients, nodes), generator=rng)
    x = centres[cluster] + noise * torch.randn(clients, nodes, num_features, generator=rng)
    same = cluster[:, :, None] == cluster[:, None, :]
    chance = torch.where(same, p_in, p_out)
    drawn = (torch.rand(clients, nodes, nodes, generator=rng) < chance).triu(1)
    client, source, target = drawn.nonzero().t()
    edges = torch.stack([client * nodes + source, client * nodes + target])
    community = torch.arange(clients) // clients_per_community
    shift = community * num_classes // communities
    y = (cluster + shift[:, None]) % num_classes
    return GraphDataset(
        name="conflicting communities",
        data=Data(
            x=x.flatten(0, 1), edge_index=to_undirected(edges, num_nodes=y.numel()), y=y.flatten()
        ),
        num_classes=num_classes,
        groups=torch.arange(clients).repeat_interleave(nodes),
        group_names=tuple(f"client {i}" for i in range(clients)),
    )
