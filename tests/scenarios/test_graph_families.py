import time

import pytest
import torch

from fedsim.config import compose, resolve
from fedsim.main import simulate
from scenarios.graph_families import FAMILIES, graph_families


def small(**options):
    values = {"num_classes": 48, "train_per_class": 2, "test_per_class": 1, "rewired": 0.0}
    return graph_families(**{**values, **options})


def parts(inputs):
    return inputs[..., :2], inputs[..., 2:]


def test_every_family_has_its_wiring():
    data = small()
    features, adjacency = parts(data.train.inputs)
    sizes, links = features[..., 0].sum(1), adjacency.sum((1, 2)) / 2
    assert {name.split()[0] for name in data.class_names} == set(FAMILIES)
    for number, name in enumerate(data.class_names):
        family, level = name.split()
        of_class = data.train.targets == number
        nodes, edges, k = sizes[of_class], links[of_class], int(level)
        if family == "ring":  # every node is linked to k + 1 neighbours on either side
            assert torch.equal(edges, nodes * (k + 1))
        if family == "tree":
            assert torch.equal(edges, nodes - 1)
        if family == "star":
            assert torch.equal(edges, (k + 1) * (nodes - k - 1))
        if family == "attached":
            assert torch.equal(edges, (k + 1) * (nodes - k - 1))


def test_an_example_is_a_symmetric_matrix_with_shares_of_links():
    data = small(rewired=0.3, most_nodes=20)
    assert data.train.inputs.shape == (96, 20, 22)
    features, adjacency = parts(data.train.inputs)
    assert torch.equal(adjacency, adjacency.transpose(1, 2))
    assert set(adjacency.unique().tolist()) == {0.0, 1.0}
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    present = features[..., 0] == 1.0
    assert not adjacency[~present].any()
    shares = adjacency.sum(2) / (present.sum(1, keepdim=True) - 1)
    assert torch.allclose(features[..., 1], shares)


def test_moving_links_keeps_their_number():
    plain, moved = small(num_classes=8), small(num_classes=8, rewired=0.5)
    trees = [c for c, name in enumerate(plain.class_names) if name.startswith("tree")]
    for data in (plain, moved):
        rows = torch.isin(data.train.targets, torch.tensor(trees))
        features, adjacency = parts(data.train.inputs[rows])
        assert torch.equal(adjacency.sum((1, 2)) / 2, features[..., 0].sum(1) - 1)
    assert not torch.equal(plain.train.inputs, moved.train.inputs)


def test_the_same_seed_gives_the_same_graphs():
    assert torch.equal(small().train.inputs, small().train.inputs)
    assert not torch.equal(small().train.inputs, small(seed=1).train.inputs)
    assert small().class_names != small(seed=1).class_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 49}, r"num_classes must lie in \[1, 48\]"),
        ({"test_per_class": 0}, "must be at least 1"),
        ({"fewest_nodes": 5}, "fewest_nodes must be at least 18"),
        ({"rewired": 2.0}, "rewired must lie"),
    ],
)
def test_senseless_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_episodes_over_graphs_help_with_unseen_kinds(tmp_path, monkeypatch):
    """24 kinds are the base, 24 the field; a trained network against an untrained one."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    words = ["experiment=fedrecon_graphs", "progress=false", "dataset.test_per_class=40"]
    scores = {}
    for episodes in (0, 200):
        node = resolve(compose([*words, f"encoder.training.episodes={episodes}"]))
        summary = simulate(node, tmp_path / str(episodes), started=time.perf_counter())
        scores[episodes] = summary["measure/after/field"]
    assert scores[200] > scores[0] + 0.05
    assert scores[200] > 5 / 48  # five times chance
