"""Bounds from the same configuration."""

import json

import numpy as np
import pytest
import torch

from fedsim.build import build
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from fedsim.main import simulate
from fedsim.modes import in_mode

TOY = ["dataset=toy", "dataset.train_examples=240"]
SMALL = [
    "scenario.num_experiences=2",
    "clock.rounds_per_experience=2", "training.epochs=2", "training.batch_size=4", "num_clients=4",
    "client=sgd", "progress=false",
]  # fmt: skip
APART = ["partition=dirichlet", "order=shuffled"]


def node(*overrides):
    data = [] if any(word.startswith("dataset=") for word in overrides) else TOY
    return resolve(compose([*data, *SMALL, *overrides]))


def run(tmp_path, *overrides, name="run"):
    return simulate(node(*overrides), tmp_path / name, started=0.0)


def scenario(*overrides):
    return build(node(*overrides)).setting.scenario


@pytest.mark.parametrize(
    "words",
    [
        ["partition=dirichlet"],
        ["partition=resampled"],
        ["scenario=missions", "scenario.field_classes=8", "scenario.mission.shots=4"],
    ],
    ids=lambda words: words[0],
)
def test_central_holds_what_all_clients_hold_together(words):
    federated, central = scenario(*words), scenario(*words, "mode=central")
    assert central.num_clients == 1
    for e in range(2):
        for split in ("train", "test"):
            if split == "train":
                parts = [federated.indices(c, e, split) for c in range(4)]
                pooled = np.sort(np.concatenate(parts))
            else:
                pooled = federated.indices(None, e, split)
            assert np.array_equal(central.indices(0, e, split), pooled)
            assert len(central.shard(0, e, split)) == len(pooled)


def examples_seen(*overrides):
    """Examples in all batches of a round in which all clients train."""
    simulation = build(node(*overrides))
    client, scen = simulation.client, simulation.setting.scenario
    seen = 0
    for c in range(scen.num_clients):
        shard = scen.shard(c, 0, "train")
        rng = torch.Generator().manual_seed(0)
        seen += sum(len(batch.targets) for batch in client.batches(shard, None, None, rng))
    return seen


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_all_modes_have_the_same_budget(participation):
    central = examples_seen("mode=central", f"participation={participation}")
    for mode in ("federated", "local"):
        all_clients = examples_seen(f"mode={mode}", f"participation={participation}")
        assert central == participation * all_clients > 0


def test_a_partial_pass_is_drawn_anew_and_without_repetition():
    shard = scenario("mode=central", "participation=0.3").shard(0, 0, "train")
    rng = torch.Generator().manual_seed(0)
    first = torch.cat([b.inputs for b in shard.batches(8, rng)])
    second = torch.cat([b.inputs for b in shard.batches(8, rng)])
    assert len(first) == -int(-len(shard) * 0.3 // 1)
    assert len(torch.unique(first, dim=0)) == len(first)
    assert not torch.equal(first, second)


def test_central_of_one_client_is_that_clients_training(tmp_path):
    one = ["num_clients=1"]
    alone = run(tmp_path, *one, name="a")
    central = run(tmp_path, *one, "mode=central", name="b")
    assert central["digest"] == alone["digest"]


def test_local_of_one_client_is_that_clients_training(tmp_path):
    run(tmp_path, "num_clients=1", name="a")
    run(tmp_path, "num_clients=1", "mode=local", name="b")

    def tested(name):
        lines = (tmp_path / name / "rows.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [r["accuracy"] for r in rows if r["client"] == 0]

    assert tested("a") == tested("b")


@pytest.mark.parametrize("client", ["sgd", "replay", "ewc", "fedprox", "avalanche_ewc"])
def test_bounds_take_any_client_of_whole_models(tmp_path, client):
    for mode in ("central", "local"):
        summary = run(tmp_path, *APART, f"client={client}", f"mode={mode}", name=f"{client}{mode}")
        assert summary["test_accuracy"] is not None


def test_nothing_is_exchanged_locally(tmp_path):
    summary = run(tmp_path, *APART, "mode=local", "strategy=fedadam")
    assert summary["upload_bytes"] == summary["download_bytes"] == 0
    assert summary["model"] == "personal"


def test_the_bounds_bound(tmp_path):
    common = ["partition=iid", "scenario=single", "scenario.num_experiences=1", "num_clients=10"]
    common += ["training.epochs=1", "clock.rounds_per_experience=3"]
    accuracy = {
        mode: run(tmp_path, *common, f"mode={mode}", name=mode)["test_accuracy"]
        for mode in ("local", "federated", "central")
    }
    assert accuracy["local"] < accuracy["federated"] <= accuracy["central"]


def test_staggered_clients_have_one_time_when_pooled():
    staggered = node("clock=staggered", "clock.max_shift=1", "mode=central")
    assert in_mode(staggered)["clock"]["_target_"] == "fedsim.clock.Clock"
    assert build(staggered).setting.clock.num_rounds == 4


def test_the_saved_configuration_keeps_the_mode(tmp_path):
    from omegaconf import OmegaConf

    first = run(tmp_path, "mode=central", "strategy=fedadam", name="a")
    saved = OmegaConf.to_container(OmegaConf.load(tmp_path / "a" / "config.yaml"))
    assert saved["mode"] == "central"
    assert saved["num_clients"] == 4
    assert simulate(saved, tmp_path / "b", started=0.0)["digest"] == first["digest"]


def test_what_cannot_be_bounded_is_told(tmp_path):
    with pytest.raises(ConfigError, match="mode must be"):
        node("mode=centralised")
    with pytest.raises(ConfigError, match="takes the strategy away"):
        node("mode=local", "client=prototypes", "strategy=prototypes")
    with pytest.raises(ValueError, match="participation=1"):
        run(tmp_path, "mode=central", "participation=0.5", "client=avalanche_naive")


def test_a_graph_is_pooled_as_a_whole(tmp_path):
    graph = [
        "dataset=karate_club", "scenario=graph", "partition=graph_random", "backbone=gcn",
        "scenario.num_experiences=1", "scenario.split.train=0.4", "num_clients=3",
    ]  # fmt: skip
    central = scenario(*graph, "mode=central")
    assert len(central.shard(0, 0, "train").inputs.y) == 34
    for mode in ("central", "local"):
        assert run(tmp_path, *graph, f"mode={mode}", name=mode)["test_accuracy"] is not None
    with pytest.raises(ConfigError, match="a graph as a whole"):
        scenario(*graph, "mode=central", "participation=0.5")
