import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch_geometric.data import Data

from fedsim.backbones.graph import GAT, GCN, GraphMLP
from fedsim.backbones.graph_propagation import APPNP, DAGNN, GCNII, SGC
from fedsim.functional.masks import attach_masks, masks, weights
from fedsim.model import Model

FOLDER = Path(__file__).parents[3] / "conf" / "backbone"
NAMES = ["appnp", "dagnn", "gat", "gcn", "gcnii", "gin", "graph_mlp", "sage", "sgc"]


def ring(num_nodes=6, num_features=5, seed=0):
    """A cycle with an extra chord; the first half of the nodes are rows."""
    nodes = torch.arange(num_nodes)
    source = torch.cat([nodes, torch.tensor([0])])
    target = torch.cat([(nodes + 1) % num_nodes, torch.tensor([3])])
    links = torch.cat([torch.stack([source, target]), torch.stack([target, source])], dim=1)
    x = torch.randn(num_nodes, num_features, generator=torch.Generator().manual_seed(seed))
    return Data(x=x, edge_index=links, mask=nodes < num_nodes // 2)


def build(name, **changes):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    config.pop("needs")
    torch.manual_seed(0)
    return instantiate(config, **changes)(input_shape=(5,))


def adjacency(data):
    """Symmetrically normalised adjacency with self-loops, dense, from the definition."""
    a = torch.eye(len(data.x))
    a[data.edge_index[1], data.edge_index[0]] = 1.0
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale[None, :]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_lists_every_argument_and_needs_a_graph(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert config.pop("needs") == ["graph"]
    arguments = set(inspect.signature(get_class(config._target_)).parameters) - {"input_shape"}
    assert set(config) - {"_target_", "_partial_"} == arguments


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_mask_in_order_and_all_without(name):
    data = ring()
    backbone = build(name).eval()
    rows = backbone(data)
    assert rows.shape == (3, backbone.num_features)
    everything = backbone(Data(x=data.x, edge_index=data.edge_index))
    assert everything.shape == (6, backbone.num_features)
    assert_close(everything[:3], rows)
    assert backbone.embed(data).shape == (6, backbone.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_through_a_head(name):
    torch.manual_seed(1)
    model = Model(build(name), 3)
    cross_entropy(model(ring()), torch.tensor([0, 1, 2])).backward()
    silent = [
        n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert silent == []
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters()) > 1


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_ones_fit_every_backbone(name):
    data = ring()
    plain, masked = Model(build(name), 3).eval(), Model(build(name), 3).eval()
    masked.load_state_dict(plain.state_dict())
    attach_masks(masked, threshold=0.001)
    assert_close(masked(data), plain(data))
    assert set(weights(masked)) == {n for n, _ in plain.named_parameters()}
    masked.train()
    cross_entropy(masked(data), torch.tensor([0, 1, 2])).backward()
    assert all(torch.isfinite(mask.grad).all() for mask in masks(masked).values())


def test_gcn_is_the_formula_of_the_method():
    data = ring()
    gcn = GCN(input_shape=(5,), hidden=4, dropout=0.5).eval()
    a = adjacency(data)
    first, second = gcn.layers
    h = torch.relu(a @ data.x @ first.lin.weight.t() + first.bias)
    z = a @ h @ second.lin.weight.t() + second.bias
    assert_close(gcn.embed(data), z)
    assert_close(gcn(data), torch.relu(z)[:3])
    assert torch.equal(first.bias, torch.zeros(4))
    bound = (6 / (5 + 4)) ** 0.5
    assert float(first.lin.weight.detach().abs().max()) <= bound


def test_gcn_has_the_parameters_of_the_methods_table():
    model = Model(GCN(input_shape=(1433,)), 7)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    biases = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert (matrices, biases) == (200_704, 263)


def test_dropout_acts_on_the_features_in_training_only():
    data = ring(num_nodes=40, num_features=5)
    gcn = GCN(input_shape=(5,), hidden=64, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(gcn.train()(data), gcn(data))
    assert torch.equal(gcn.eval()(data), gcn(data))


def test_self_loops_of_the_graph_are_not_counted_twice():
    data = ring()
    loops = torch.arange(6).repeat(2, 1)
    looped = Data(x=data.x, edge_index=torch.cat([data.edge_index, loops], dim=1))
    gcn = GCN(input_shape=(5,), hidden=4).eval()
    assert_close(gcn.embed(looped), gcn.embed(data))


def test_graph_mlp_is_blind_to_links():
    data = ring()
    alone = Data(x=data.x, edge_index=torch.zeros(2, 0).long(), mask=data.mask)
    mlp = GraphMLP(input_shape=(5,), hidden=4).eval()
    assert torch.equal(mlp(data), mlp(alone))


def test_sgc_with_a_head_is_linear_in_propagated_features():
    data = ring()
    sgc = SGC(input_shape=(5,), hidden=4, num_hops=3).eval()
    smooth = torch.linalg.matrix_power(adjacency(data), 3) @ data.x
    assert_close(sgc.embed(data), smooth @ sgc.layer.lin.weight.t() + sgc.layer.lin.bias)
    assert torch.equal(sgc(data), sgc.embed(data)[:3])


def test_appnp_is_personalised_pagerank():
    data = ring()
    appnp = APPNP(input_shape=(5,), hidden=4, num_hops=2, alpha=0.2).eval()
    h = torch.relu(appnp.lin(data.x))
    a = adjacency(data)
    z = 0.8 * a @ h + 0.2 * h
    assert_close(appnp.embed(data), 0.8 * a @ z + 0.2 * h)


def test_dagnn_weighs_every_hop_node_by_node():
    data = ring()
    dagnn = DAGNN(input_shape=(5,), hidden=4, num_hops=2).eval()
    hop = torch.relu(dagnn.lin(data.x))
    total = torch.zeros(6, 4)
    for _ in range(3):
        total = total + torch.sigmoid(dagnn.score(hop)) * hop
        hop = adjacency(data) @ hop
    assert_close(dagnn.embed(data), total)


def test_gcnii_layers_follow_the_formula():
    data = ring()
    gcnii = GCNII(input_shape=(5,), hidden=4, num_layers=1, alpha=0.1, theta=0.5).eval()
    first = torch.relu(gcnii.lin(data.x))
    support = 0.9 * adjacency(data) @ first + 0.1 * first
    beta = float(torch.log(torch.tensor(1.5)))
    expected = (1 - beta) * support + beta * support @ gcnii.layers[0].weight1
    assert_close(gcnii.embed(data), expected)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GCN(input_shape=(3, 8, 8)), "nodes with features"),
        (lambda: GCN(input_shape=(5,), num_layers=0), "num_layers"),
        (lambda: GCN(input_shape=(5,), hidden=0), "hidden"),
        (lambda: GCN(input_shape=(5,), dropout=1.0), "dropout"),
        (lambda: GAT(input_shape=(5,), hidden=10, heads=4), "multiple of heads"),
        (lambda: GAT(input_shape=(5,), attention_dropout=1.0), "attention_dropout"),
        (lambda: APPNP(input_shape=(5,), alpha=1.5), "alpha"),
        (lambda: DAGNN(input_shape=(5,), num_hops=0), "num_hops"),
        (lambda: GCNII(input_shape=(5,), theta=0.0), "theta"),
    ],
)
def test_arguments_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
