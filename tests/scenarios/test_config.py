"""Every yaml of this part builds, and its keys are exactly the arguments it passes."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf, open_dict

import fedsim.clock
from fedsim.data import Dataset
from fedsim.scenario import Scenario

CONF = Path(__file__).parents[2] / "conf"
SMALL = {"shape": [1, 6, 6], "num_groups": 12, "train_examples": 120, "test_examples": 60}
GROUPS = ("dataset", "scenario", "partition", "order", "clock")


def names(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if own(p))


def own(path):
    return "graph" not in path.read_text() and not path.stem.startswith("missions")


def compose(**choices):
    chosen = {
        "dataset": "toy",
        "scenario": "single",
        "partition": "iid",
        "order": "same",
        "clock": "synchronous",
        **choices,
    }
    nodes = {group: load(group, chosen[group]) for group in GROUPS}
    config = OmegaConf.create({"seed": 3, "num_clients": 4, **nodes})
    if chosen["dataset"] == "toy":
        config.dataset.update(SMALL)
    given = set().union(*(node.pop("provides", []) for node in nodes.values()))
    wanted = set().union(*(node.pop("needs", []) for node in nodes.values()))
    with open_dict(config):
        for group in GROUPS:
            config[group].pop("provides", None)
            config[group].pop("needs", None)
            config[group].pop("facts", None)
    return config, wanted, given


def load(group, name):
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    parents = node.pop("defaults", [])
    return OmegaConf.merge(*(load(group, parent) for parent in parents), node)


@pytest.mark.parametrize("name", names("scenario"))
def test_every_scenario_builds_with_every_clock(name):
    config, _, given = compose(scenario=name)
    scenario = hydra.utils.instantiate(config.scenario)
    assert isinstance(scenario, Scenario)
    assert scenario.num_experiences == config.scenario.num_experiences
    assert ("task_labels" in given) == (scenario.task_classes is not None)
    assert (scenario.shard(0, 0, "train").tasks is not None) == ("task_labels" in given)
    for clock_name in names("clock"):
        config, _, _ = compose(scenario=name, clock=clock_name)
        clock = hydra.utils.instantiate(config.clock)
        assert isinstance(clock, fedsim.clock.Clock)
        rounds = config.clock.rounds_per_experience
        assert clock.num_rounds == rounds * scenario.num_experiences


@pytest.mark.parametrize("name", names("partition"))
@pytest.mark.parametrize("order", names("order"))
def test_every_partition_and_order_builds(name, order):
    config, wanted, _ = compose(scenario="class_incremental", partition=name, order=order)
    scenario = hydra.utils.instantiate(config.scenario)
    assert sum(len(scenario.indices(0, e, "train")) for e in range(5)) > 0
    assert (wanted == {"groups"}) == (name == "natural")


@pytest.mark.parametrize("name", names("dataset"))
def test_every_data_set_names_its_arguments(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    config, _, given = compose(dataset=name)
    assert given & {"images", "vectors"}
    with open_dict(config):
        if "root" in config.dataset:
            config.dataset.update(root=str(tmp_path), download=False)
    try:
        assert isinstance(hydra.utils.instantiate(config.dataset), Dataset)
    except hydra.errors.InstantiationException as error:
        assert isinstance(error.__cause__, FileNotFoundError)  # noqa: PT017


@pytest.mark.parametrize("group", GROUPS)
def test_every_value_has_a_comment(group):
    for name in names(group):
        for line in (CONF / group / f"{name}.yaml").read_text().splitlines():
            plumbing = "${" in line or line.startswith(("_target_", "defaults", "provides"))
            opens = line.endswith(":") or line.strip().startswith("_target_")
            assert plumbing or opens or "#" in line, f"{group}/{name}: {line}"


def test_a_wrong_key_fails():
    config, _, _ = compose(scenario="class_incremental")
    with open_dict(config):
        config.scenario.num_experience = 3
    with pytest.raises(hydra.errors.InstantiationException, match="num_experience"):
        hydra.utils.instantiate(config.scenario)
