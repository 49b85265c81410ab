"""A small graph with four planted communities and labels that follow them."""

import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from scenarios.graph import GraphScenario
from scenarios.graph_data import GraphDataset
from scenarios.graph_partition import RandomNodes
from scenarios.graph_split import RandomSplit
from scenarios.graph_streams import AllAtOnce
from scenarios.order import SameOrder


def planted(num_nodes=80, num_classes=4, seed=0):
    """Node ``i`` has class ``i % K``; most of its links go to its class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(num_nodes) % num_classes
    chance = torch.where(y[:, None] == y[None, :], 0.4, 0.02)
    links = (torch.rand(num_nodes, num_nodes, generator=rng) < chance).triu(1).nonzero().t()
    x = torch.nn.functional.one_hot(y, num_classes).float()
    x += 0.1 * torch.randn(num_nodes, num_classes, generator=rng)
    data = Data(x=x, edge_index=to_undirected(links, num_nodes=num_nodes), y=y)
    return GraphDataset(name="planted", data=data, num_classes=num_classes)


def scenario(**changes):
    """A graph scenario of four clients, any argument changed."""
    arguments = {
        "dataset": planted(),
        "partition": RandomNodes(),
        "order": SameOrder(),
        "num_clients": 4,
        "num_experiences": 1,
        "split": RandomSplit(train=0.4, test=0.3),
        "stream": AllAtOnce(),
        "seed": 0,
    }
    return GraphScenario(**{**arguments, **changes})
