import pytest
import torch
from torch.testing import assert_close
from torch_geometric.data import Data

from fedsim.backbones.graph import GAT, GCN, GIN, GraphMLP
from fedsim.backbones.node_sets import MeanNodes, as_one_graph
from fedsim.seeding import generator

# a path of three nodes and a pair, in room for three; features are 1 and a number
PATH = [[1.0, 2.0, 0.0, 1.0, 0.0], [1.0, 3.0, 1.0, 0.0, 1.0], [1.0, 4.0, 0.0, 1.0, 0.0]]
PAIR = [[1.0, 5.0, 0.0, 1.0, 0.0], [1.0, 6.0, 1.0, 0.0, 0.0], [0.0] * 5]
BATCH = torch.tensor([PATH, PAIR])


def mean_nodes(net=GIN, **options):
    torch.manual_seed(0)
    return MeanNodes(
        input_shape=(3, 5),
        net=lambda input_shape: net(input_shape=input_shape, hidden=8, **options),
    ).eval()


def test_a_batch_becomes_one_graph_of_separate_parts():
    graph, owners = as_one_graph(BATCH, 2)
    assert graph.x[:, 1].tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert owners.tolist() == [0, 0, 0, 1, 1]
    links = set(map(tuple, graph.edge_index.T.tolist()))
    assert links == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)}


@pytest.mark.parametrize("net", [GIN, GCN, GAT, GraphMLP])
def test_the_embedding_is_the_mean_of_the_nodes_of_each_graph_alone(net):
    backbone = mean_nodes(net)
    alone = [
        Data(x=BATCH[0, :, :2], edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])),
        Data(x=BATCH[1, :2, :2], edge_index=torch.tensor([[0, 1], [1, 0]])),
    ]
    expected = torch.stack([backbone.net.embed(graph).mean(0) for graph in alone])
    assert_close(backbone(BATCH), expected)
    assert backbone.num_features == 8


def test_the_order_of_the_nodes_does_not_matter():
    order = torch.tensor([2, 0, 1])
    turned = BATCH[:1, order]
    turned[..., 2:] = turned[..., 2:][..., order]
    backbone = mean_nodes()
    assert_close(backbone(turned), backbone(BATCH[:1]))


def test_a_graph_without_links_or_nodes_has_a_finite_embedding():
    graphs = torch.zeros(2, 3, 5)
    graphs[0, :, 0] = 1.0
    embedded = mean_nodes()(graphs)
    assert embedded.isfinite().all()
    assert not embedded[1].any()


def test_gradients_reach_the_graph_backbone():
    backbone = mean_nodes()
    backbone(torch.rand(4, 3, 5, generator=generator(0))).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_other_examples_are_refused():
    for shape in ((1, 8, 8), (5, 5), (7,)):
        with pytest.raises(ValueError, match="MeanNodes needs graphs as examples"):
            MeanNodes(input_shape=shape, net=GIN)
