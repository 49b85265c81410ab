import math
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from torch.nn.functional import cross_entropy

from clients.fedprox import FedProx
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.backbones.vision import Conv4
from fedsim.client import initial_model
from fedsim.clock import Clock
from fedsim.grid import LocalGrid
from fedsim.results import digest
from fedsim.seeding import generator
from tests.fedsim.builders import (
    first_arrays,
    small_client,
    small_loop,
    small_setting,
    small_training,
)

ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def run(strategy, client, **options):
    """All logs and the final arrays."""
    rounds = list(small_loop(strategy, client, **options).run(first_arrays(client.setting)))
    return [log for log, _ in rounds], rounds[-1][1]


def test_one_client_with_full_participation_is_centralised_sgd_bit_for_bit():
    setting = small_setting(num_clients=1, num_experiences=1, rounds=3)
    _, arrays = run(flower.FedAvg(**ALL), small_client(setting))
    model = initial_model(setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shard = setting.scenario.shard(0, 0, "train")
    for round_ in (1, 2, 3):
        order = torch.randperm(len(shard), generator=generator(0, "train", round_, 0))
        for part in order.split(4):
            optimizer.zero_grad()
            cross_entropy(model(shard.inputs[part]), shard.targets[part]).backward()
            optimizer.step()
    got = to_params(arrays)
    assert all(torch.equal(got[name], value) for name, value in model.state_dict().items())


def test_our_loop_equals_flowers_own_start():
    client = small_client()
    _, ours = run(flower.FedAvg(**ALL), client)
    grid = LocalGrid(client_app_of(lambda _: client), 4)
    theirs = flower.FedAvg(**ALL).start(grid, first_arrays(client.setting), num_rounds=4).arrays
    assert digest(ours) == digest(theirs)


STRATEGIES = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9},
    "FedProx": {"proximal_mu": 0.1},
    "FedAdam": {},
    "FedYogi": {},
    "FedAdagrad": {},
    "FedMedian": {},
    "FedTrimmedAvg": {},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "loss"},
    "Bulyan": {},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_flower_strategy_runs_unchanged(name):
    strategy = getattr(flower, name)(**ALL, **STRATEGIES[name])
    client = small_client()
    logs, arrays = run(strategy, client)
    assert [len(log.cohort) for log in logs[1:]] == [4] * 4
    start = to_params(first_arrays(client.setting))
    end = to_params(arrays)
    assert end.keys() == start.keys()
    assert any(not torch.equal(end[k], start[k]) for k in end)
    assert all(torch.isfinite(v).all() for v in end.values())


def test_fedprox_without_a_proximal_term_is_fedavg_bit_for_bit():
    _, plain = run(flower.FedAvg(**ALL), small_client())
    _, prox = run(flower.FedAvg(**ALL), small_client(kind=FedProx, mu=0.0))
    assert digest(plain) == digest(prox)
    _, sent = run(flower.FedProx(**ALL, proximal_mu=0.0), small_client(kind=FedProx, mu=3.0))
    assert digest(plain) == digest(sent)
    _, strong = run(flower.FedAvg(**ALL), small_client(kind=FedProx, mu=1.0))
    assert digest(plain) != digest(strong)


def test_the_same_seed_picks_the_same_clients_and_another_seed_others():
    def cohorts(seed):
        client = small_client(small_setting(num_clients=12, rounds=4, seed=seed))
        logs, _ = run(flower.FedAvg(0.25, 0.25, **ALL), client)
        return [log.cohort for log in logs[1:]]

    assert cohorts(1) == cohorts(1)
    assert cohorts(1) != cohorts(2)
    assert len({tuple(c) for c in cohorts(1)}) > 1


def test_execution_order_changes_nothing():
    client = small_client()
    app = client_app_of(lambda _: client)
    digests = {
        digest(run(flower.FedAvg(**ALL), client, grid=LocalGrid(app, 4, order=order))[1])
        for order in (None, lambda m: m[::-1], lambda m: [m[2], m[0], m[3], m[1]])
    }
    assert len(digests) == 1


def test_evaluations_happen_when_the_clock_says_by_the_same_clients():
    clock = Clock(num_experiences=2, rounds_per_experience=3, evaluate_every=2)
    client = small_client(small_setting(num_clients=8, clock=clock))
    logs, _ = run(flower.FedAvg(1.0, 0.5, **ALL), client)
    evaluated = {log.tick.round: [u.client_id for u in log.evaluations] for log in logs}
    assert {r for r, clients in evaluated.items() if clients} == {2, 3, 4, 6}
    assert len({tuple(c) for c in evaluated.values() if c}) == 1


class Poisoner(SGD):
    """Client 2 sends rubbish in round 2."""

    rubbish = math.nan

    def upload(self, model, shard, down, state):
        records = super().upload(model, shard, down, state)
        if down.client_id == 2 and down.tick.round == 2:
            records["arrays"]["head.weight"] = self.spoil(records["arrays"]["head.weight"])
        return records

    def spoil(self, weight):
        return torch.full_like(weight, self.rubbish)


class Misshaper(Poisoner):
    def spoil(self, weight):
        return weight[:1]


class Absentee(SGD):
    """Client 2 has nothing to send in round 2."""

    def train(self, down, state):
        upload = super().train(down, state)
        if down.client_id == 2 and down.tick.round == 2:
            return type(upload)(client_id=2, num_examples=0, records={})
        return upload


@pytest.mark.parametrize("kind", [Poisoner, Misshaper])
def test_a_bad_update_is_rejected_with_client_and_round_and_the_run_goes_on(kind):
    logs, arrays = run(flower.FedAvg(**ALL), small_client(kind=kind))
    (rejection,) = [r for log in logs for r in log.rejections]
    assert (rejection.round, rejection.client) == (2, 2)
    assert logs[2].cohort == [0, 1, 3]
    _, without = run(flower.FedAvg(**ALL), small_client(kind=Absentee))
    assert digest(arrays) == digest(without)  # as if the offender had not been there


def test_a_round_without_any_update_keeps_the_model():
    class Idle(SGD):
        def train(self, down, state):
            upload = super().train(down, state)
            return type(upload)(client_id=upload.client_id, num_examples=0, records={})

    client = small_client(kind=Idle)
    logs, arrays = run(flower.FedAvg(**ALL), client)
    assert digest(arrays) == digest(first_arrays(client.setting))
    assert logs[1].idle == [0, 1, 2, 3]


def test_bytes_are_counted_by_record():
    logs, _ = run(flower.FedAvg(**ALL), small_client())
    size = (6 * 4 + 4) * 4
    assert logs[1].upload_bytes == {"arrays": 4 * size}
    assert logs[1].download_bytes == {"arrays": 4 * size}
    assert logs[2].download_bytes == {"arrays": 8 * size}  # the boundary evaluates as well


def test_integer_buffers_keep_their_type():
    setting = small_setting(rounds=1, shape=(1, 8, 8), backbone=partial(Conv4, width=4))
    _, arrays = run(flower.FedAvg(**ALL), small_client(setting))
    counters = {n: t for n, t in to_params(arrays).items() if "num_batches_tracked" in n}
    assert counters
    assert all(t.dtype == torch.int64 for t in counters.values())


def test_the_train_loss_is_weighted_by_examples():
    client = small_client()
    logs, _ = run(flower.FedAvg(**ALL), client)
    assert 0 < logs[-1].train_loss < logs[1].train_loss + 5
    assert logs[1].num_examples == sum(len(client.scenario.shard(c, 0, "train")) for c in range(4))


def test_a_client_error_stops_the_run_by_default_and_names_the_client():
    class Broken(SGD):
        def loss(self, model, batch, down, state):
            raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        run(flower.FedAvg(**ALL), small_client(kind=Broken))


def test_a_client_error_can_be_tolerated():
    class Broken(SGD):
        def loss(self, model, batch, down, state):
            if down.client_id == 1:
                raise RuntimeError("broken loss")
            return super().loss(model, batch, down, state)

    client = small_client(kind=Broken)
    grid = LocalGrid(client_app_of(lambda _: client), 4)
    logs, _ = run(flower.FedAvg(**ALL), client, grid=grid)
    assert [r.client for r in logs[1].rejections] == [1]
    assert "broken loss" in logs[1].rejections[0].reason
    assert logs[1].cohort == [0, 2, 3]


def test_adam_on_the_client_is_configurable():
    adam = small_training(optimizer=partial(torch.optim.Adam, lr=0.01))
    _, a = run(flower.FedAvg(**ALL), small_client(training=adam))
    _, b = run(flower.FedAvg(**ALL), small_client())
    assert isinstance(a, ArrayRecord)
    assert digest(a) != digest(b)
