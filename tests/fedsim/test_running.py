from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.serverapp import strategy as flower
from torch import nn

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params, to_record
from fedsim.backbones.resnet import SlimResNet18
from fedsim.backbones.vision import Conv4
from fedsim.build import with_running
from fedsim.checks import ConfigError
from fedsim.client import initial_model
from fedsim.config import compose, resolve
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.main import simulate
from fedsim.running import RunningStatistics, running_statistics
from strategies.icarl import ICaRL
from tests.fedsim.builders import small_setting, small_training

ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def run(policy, strategy=None):
    """The store of client states, and the arrays before and after two rounds."""
    setting = small_setting(
        num_experiences=1, rounds=2, shape=(1, 8, 8), backbone=partial(Conv4, width=4)
    )
    first = dict(initial_model(setting).state_dict())
    if policy != "average":
        initial = running_statistics(initial_model(setting))
        setting = replace(setting, running=RunningStatistics(policy=policy, initial=initial))
        first = setting.running.without(first)
    client = SGD(setting, training=small_training())
    grid = LocalGrid(client_app_of(lambda _: client), 4, raise_errors=True)
    loop = Loop(
        strategy=strategy or flower.FedAvg(**ALL),
        grid=grid, roster=grid.roster, clock=setting.clock, seed=0,
    )  # fmt: skip
    logs = list(loop.run(to_record(first)))
    assert not [r for log, _ in logs for r in log.rejections]
    return grid.store, to_params(logs[-1][1]), logs[-1][0]


def is_statistic(name):
    return "running_" in name or "num_batches" in name


def test_averaged_statistics_travel_and_integers_stay_integers():
    store, arrays, log = run("average")
    assert store.ids() == []
    counters = {n: t for n, t in arrays.items() if "num_batches" in n}
    assert counters
    assert all(t.dtype == torch.int64 and t == 8 for t in counters.values())
    assert len(log.evaluations) == 4


@pytest.mark.parametrize("strategy", [flower.FedAvg, flower.FedAdam])
def test_local_statistics_stay_with_their_clients(strategy):
    store, arrays, log = run("local", strategy(**ALL))
    assert not any(map(is_statistic, arrays))
    assert store.ids() == [0, 1, 2, 3]
    own = [to_params(store.get(c)["running"]) for c in range(4)]
    names = [n for n in own[0] if n.endswith("running_mean")]
    assert all(map(is_statistic, own[0]))
    assert names
    assert any(not torch.equal(own[0][n], own[1][n]) for n in names)
    assert all(int(t) == 8 for n, t in own[0].items() if "num_batches" in n)  # two rounds of four
    assert len(log.evaluations) == 4


def test_dropped_statistics_are_nobodys():
    store, arrays, log = run("drop")
    assert not any(map(is_statistic, arrays))
    assert store.ids() == []
    assert len(log.evaluations) == 4


def test_fewer_bytes_travel():
    _, _, averaged = run("average")
    _, _, local = run("local")
    assert sum(local.upload_bytes.values()) < sum(averaged.upload_bytes.values())


def test_the_statistics_of_a_model_are_all_its_buffers_of_batch_norms():
    net = SlimResNet18(input_shape=(3, 8, 8))
    found = running_statistics(net)
    assert found.keys() == dict(net.named_buffers()).keys()
    assert not running_statistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_the_configuration_chooses(tmp_path):
    words = ["dataset=toy", "dataset.train_examples=40", "scenario=single", "client=sgd",
             "backbone=conv4", "num_clients=4", "training.epochs=1", "progress=false",
             "clock.rounds_per_experience=1"]  # fmt: skip
    averaged, local = (
        simulate(
            resolve(compose([*words, f"batch_statistics={p}"])), tmp_path / p, started=0.0
        )
        for p in ("average", "local")
    )  # fmt: skip
    assert local["upload_bytes"] < averaged["upload_bytes"]
    with pytest.raises(ConfigError, match="average or local or drop"):
        simulate(resolve(compose([*words, "batch_statistics=some"])), tmp_path / "x", started=0.0)


def test_a_server_that_trains_the_model_needs_all_of_it():
    with pytest.raises(ValueError, match="trains the whole model"):
        with_running(small_setting(), "local", whole=True)
    assert ICaRL.rebuilds_model
