"""Every yaml for graphs builds, and its keys are exactly the arguments it passes."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_method, instantiate

from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from scenarios.graph_data import GraphDataset
from scenarios.graph_shard import GraphShard

CONF = Path(__file__).parents[2] / "conf"


def graph_choices(group):
    files = sorted((CONF / group).glob("*.yaml"))
    return [path.stem for path in files if "scenarios.graph" in path.read_text()]


def keys(node):
    return {key for key in node if key not in ("_target_", "needs", "provides", "facts")}


def config(*overrides):
    return compose(
        ["dataset=digits_graph", "partition=metis", "scenario=graph", "backbone=gcn", *overrides]
    )


@pytest.mark.parametrize("group", ["dataset", "partition", "scenario"])
def test_yamls_list_every_argument(group):
    found = graph_choices(group)
    assert found
    for name in found:
        node = compose([f"{group}={name}"])[group]
        assert node["provides"] if group == "dataset" else "graph" in node["needs"]
        nested = [value for value in node.values() if hasattr(value, "get")]
        for part in [node, *(n for n in nested if "_target_" in n and "networkx" not in str(n))]:
            arguments = set(inspect.signature(get_method(part["_target_"])).parameters)
            assert keys(part) == arguments, (name, part["_target_"])


@pytest.mark.parametrize("scenario", graph_choices("scenario"))
@pytest.mark.parametrize("partition", ["metis", "louvain", "graph_random", "graph_dirichlet"])
def test_every_scenario_builds_with_every_partition(scenario, partition):
    node = resolve(config(f"scenario={scenario}", f"partition={partition}", "num_clients=3"))
    built = instantiate(node["scenario"])
    assert isinstance(built.shard(0, built.num_experiences - 1, "val"), GraphShard)
    assert built.num_experiences == node["scenario"]["num_experiences"]
    assert built.input_shape == (64,)


def test_overlapping_and_natural_partitions_build():
    node = resolve(config("partition=metis_overlapping"))
    assert instantiate(node["scenario"]).num_clients == 10
    with pytest.raises(ConfigError, match="groups"):
        resolve(config("partition=graph_natural"))


def test_karate_club_has_degree_features():
    dataset = instantiate(resolve(config("dataset=karate_club"))["dataset"])
    assert isinstance(dataset, GraphDataset)
    assert dataset.data.x.shape == (34, 16)


@pytest.mark.parametrize("choice", ["scenario=graph", "partition=metis", "backbone=gcn"])
def test_graph_choices_refuse_images(choice):
    with pytest.raises(ConfigError, match="graph"):
        resolve(compose(["dataset=digits", choice]))


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["cora", "texas", "chameleon", "minesweeper"])
def test_data_sets_of_the_data_folder_build(dataset):
    built = instantiate(resolve(config(f"dataset={dataset}", "num_clients=3"))["scenario"])
    assert len(built.report().clients) == 3


@pytest.mark.data
def test_twitch_countries_are_natural_clients():
    overrides = ("dataset=twitch", "partition=graph_natural", "num_clients=4")
    report = instantiate(resolve(config(*overrides))["scenario"]).report()
    assert [client.nodes for client in report.clients] == [9498, 7126, 4648, 6549]
    assert report.lost_edges == 0


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("scenario=single", "partition=iid"), "scenario (Single)"),
        (("backbone=mlp",), "backbone (MLP)"),
    ],
)
def test_what_takes_no_graph_refuses_one(overrides, named):
    with pytest.raises(ConfigError) as caught:
        resolve(config(*overrides))
    assert named in str(caught.value)
    assert "=g" in str(caught.value), "it says what takes one"
