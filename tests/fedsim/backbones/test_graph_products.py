import gc

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from fedsim.backbones.graph_products import GraphProducts
from tests.scenarios.graph_toy import planted


def graph(density):
    data = planted().data.clone()
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(80, 30, generator=rng)
    data.x = torch.where(torch.rand(80, 30, generator=rng) < density, x, 0.0)
    return data


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_projection_and_links_are_pygs_convolution_with_its_gradients(density):
    data = graph(density)
    layer = GCNConv(30, 7)
    products = GraphProducts()
    assert (products.features(data) is None) == (density > 0.1)
    weight = layer.lin.weight.detach().clone().requires_grad_()
    ours = products.links(data) @ products.project(data, weight) + layer.bias
    theirs = layer(data.x, data.edge_index)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    torch.testing.assert_close(weight.grad, layer.lin.weight.grad, atol=1e-5, rtol=1e-5)
    assert weight.grad.is_contiguous()


def test_one_way_links_carry_the_gradient_back():
    data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.zeros(3))
    links = GraphProducts().links(data)
    x = torch.randn(3, 2, requires_grad=True)
    dense = links.rows.to_dense()
    torch.testing.assert_close(links @ x, dense @ x)
    torch.autograd.gradcheck(
        lambda v: (links @ v.float()).double(), x.double(), atol=1e-2, rtol=1e-2, eps=1e-2
    )
    assert torch.equal(links.columns.to_dense(), dense.t())


def test_a_graph_is_prepared_once_and_forgotten_with_its_tensors():
    products = GraphProducts()
    data = graph(0.05)
    first = products.links(data)
    assert products.links(data) is first
    shared = Data(x=data.x, edge_index=data.edge_index, y=data.y)
    assert products.links(shared) is first
    assert products.features(shared) is products.features(data)
    del data, shared
    gc.collect()
    assert len(products._links) == 0
