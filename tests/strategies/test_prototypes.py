"""The table is the pooled class means, whoever brought them and when."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from clients.prototypes import Prototypes as Client
from fedsim.apps import client_app_of
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting
from fedsim.clock import Clock, LateClock, Tick
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.training import LocalTraining
from fedsim.wire import Upload
from scenarios.missions import Mission, Missions
from scenarios.toy import toy
from strategies.prototypes import Prototypes
from tests.fedsim.builders import first_arrays

TRAINING = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1))


def tick(round_):
    return Tick(round_, round_ - 1, 0, is_first=True, is_last=True)


def strategy(fraction=1.0):
    return Prototypes(
        sampler=Uniform(seed=0, fraction=fraction),
        evaluation_sampler=Uniform(seed=0, fraction=fraction),
    )


def upload(client, mission, classes, sums, counts):
    record = {
        "classes": torch.tensor(classes),
        "sums": torch.tensor(sums),
        "counts": torch.tensor(counts, dtype=torch.int32),
        "mission": torch.tensor(mission),
    }
    return Upload(client_id=client, num_examples=sum(counts), records={"statistics": record})


def setting(num_clients=5, clock=None, **options):
    scenario = Missions(
        dataset=toy(num_classes=12, shape=[4], noise=0.2, train_examples=240, test_examples=60),
        num_clients=num_clients,
        mission=Mission(**{"classes": 3, "shots": 4, **options.pop("mission", {})}),
        **{"num_experiences": 4, "base_classes": 3, "seed": 0, **options},
    )
    return Setting(
        scenario=scenario,
        clock=clock or Clock(num_experiences=scenario.num_experiences, rounds_per_experience=1),
        model=lambda: Model(Flatten(input_shape=(4,)), 12),
        seed=0,
    )


def run(chosen, server=None, order=None, cohort="off", **options):
    server = server or strategy()
    client = Client(chosen, training=TRAINING, **options)
    grid = LocalGrid(
        client_app_of(lambda _: client),
        chosen.scenario.num_clients,
        raise_errors=True,
        order=order,
        cohort=cohort,
    )
    loop = Loop(
        strategy=server, grid=grid, roster=grid.roster, clock=chosen.clock, seed=chosen.seed
    )
    logs = [log for log, _ in loop.run(first_arrays(chosen))]
    return server, logs


def pooled_means(scenario, joins=None):
    """Means over all examples of all missions that took place."""
    parts = [
        scenario.shard(client, e, "train")
        for client in range(scenario.num_clients)
        for e in range(scenario.num_experiences)
        if joins is None or e + 1 >= joins(client)
    ]
    inputs = np.concatenate([p.inputs.double().numpy() for p in parts])
    targets = np.concatenate([p.targets.numpy() for p in parts])
    return {c: inputs[targets == c].mean(0) for c in np.unique(targets)}


def largest_deviation(server, expected):
    state = server.state
    assert state.classes.tolist() == sorted(expected)
    means = (state.sums / state.counts.unsqueeze(1)).numpy()
    return max(
        np.abs(mean - expected[c]).max()
        for c, mean in zip(state.classes.tolist(), means, strict=True)
    )


# ---- state in, state out ---------------------------------------------------------------------


def test_two_clients_with_the_same_class_give_the_count_weighted_mean():
    server = strategy()
    uploads = [upload(0, 0, [7], [[6.0]], [3]), upload(1, 0, [2, 7], [[5.0], [8.0]], [1, 1])]
    state = server.aggregate(tick(1), server.init({}), uploads)
    rows = server.payload(tick(2), state, None)["prototypes"]
    assert rows["classes"].tolist() == [2, 7]
    assert_close(rows["means"], torch.tensor([[5.0], [3.5]]))
    assert rows["counts"].tolist() == [1, 4]


def test_a_mission_is_merged_once():
    server = strategy()
    first = [upload(0, 0, [1], [[2.0]], [1])]
    state = server.aggregate(tick(1), server.init({}), first)
    again = server.aggregate(tick(2), state, [*first, upload(1, 0, [1], [[4.0]], [1])])
    assert again.sums.tolist() == [[6.0]]
    assert again.refused == 1
    assert server.measures(again)["refused_missions"] == 1


def test_only_rows_that_the_client_does_not_know_are_sent():
    server = strategy()
    state = server.aggregate(
        tick(1), server.init({}), [upload(0, 0, [1, 2], [[1.0], [2.0]], [1, 1])]
    )
    state = server.aggregate(tick(2), state, [upload(1, 1, [2], [[4.0]], [1])])
    state = server.aggregate(tick(3), state, [upload(0, 2, [5], [[9.0]], [1])])
    sent = {
        c: server.payload(tick(4), state, c)["prototypes"]["classes"].tolist() for c in (0, 1, 2)
    }
    assert sent == {0: [5], 1: [2, 5], 2: [1, 2, 5]}


def test_clients_that_know_the_same_get_the_same_object():
    server = strategy()
    uploads = [upload(c, 0, [c], [[1.0]], [1]) for c in range(3)]
    state = server.aggregate(tick(1), server.init({}), uploads)
    first, second = (server.payload(tick(2), state, c)["prototypes"] for c in (0, 1))
    assert first is second


def test_aggregation_leaves_the_state_it_was_given_alone():
    server = strategy()
    state = server.aggregate(tick(1), server.init({}), [upload(0, 0, [1], [[2.0]], [1])])
    server.aggregate(tick(2), state, [upload(0, 1, [1], [[2.0]], [1])])
    assert state.sums.tolist() == [[2.0]]
    assert state.missions == {0: (0,)}


# ---- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_clients", [1, 5, 50])
def test_the_table_is_the_pooled_class_means(num_clients):
    chosen = setting(num_clients, mission={"replacement": True})
    server, _ = run(chosen)
    assert largest_deviation(server, pooled_means(chosen.scenario)) < 1e-5


def test_a_thousand_clients_give_the_pooled_class_means():
    chosen = setting(1000, num_experiences=2, mission={"replacement": True})
    server, _ = run(chosen)
    assert largest_deviation(server, pooled_means(chosen.scenario)) < 1e-5


def test_the_order_of_the_clients_does_not_show():
    forth, _ = run(setting())
    back, _ = run(setting(), order=lambda messages: messages[::-1])
    assert torch.equal(forth.state.sums, back.state.sums)


def test_the_same_classes_spread_over_clients_give_the_identical_table():
    rules = {"classes": 1, "shots": 20, "recurring": False, "overlap": False}
    alone, _ = run(setting(1, base_classes=0, num_experiences=12, mission=rules))
    four, _ = run(setting(4, base_classes=0, num_experiences=3, mission=rules))
    assert torch.equal(alone.state.classes, four.state.classes)
    assert_close(alone.state.sums, four.state.sums)
    assert torch.equal(alone.state.counts, four.state.counts)


def test_late_clients_bring_what_they_saw():
    clock = LateClock(
        num_experiences=4, rounds_per_experience=1, late_fraction=0.7, latest_join=3, seed=1
    )
    chosen = setting(clock=clock)
    assert {clock.joins(c) for c in range(5)} > {1}
    server, _ = run(chosen)
    assert largest_deviation(server, pooled_means(chosen.scenario, clock.joins)) < 1e-5


def test_several_rounds_of_a_mission_count_it_once():
    clock = Clock(num_experiences=4, rounds_per_experience=3)
    chosen = setting(clock=clock)
    server, logs = run(chosen)
    assert largest_deviation(server, pooled_means(chosen.scenario)) < 1e-5
    assert [len(log.idle) for log in logs[1:4]] == [0, 5, 5]
    assert server.state.refused == 0


def test_partial_participation_merges_the_missions_that_took_place():
    chosen = setting(10, mission={"replacement": True})
    server, logs = run(chosen, strategy(fraction=0.3))
    merged = sum(len(positions) for positions in server.state.missions.values())
    assert merged == sum(len(log.cohort) for log in logs) == 12


def test_the_model_is_never_sent():
    _, logs = run(setting())
    for log in logs[1:]:
        assert set(log.upload_bytes) == {"statistics"}
        assert set(log.download_bytes) <= {"prototypes", "merged"}


def test_bytes_per_class_are_the_sum_the_count_and_the_key():
    _, logs = run(setting(base_classes=0, mission={"replacement": True}, evaluation_points=True))
    d, classes = 4, 3
    expected = 4 * d + 4 + 8 + 8 / classes  # int64 key, and the mission's number once
    assert logs[-1].measures["upload_bytes_per_class"] == pytest.approx(expected)


def test_missions_of_a_block_pass_the_encoder_together(monkeypatch):
    again = {"replacement": True}
    alone, _ = run(setting(num_clients=9, mission=again))
    sizes = []
    features = Model.features

    def counted(self, inputs):
        sizes.append(len(inputs))
        return features(self, inputs)

    monkeypatch.setattr(Model, "features", counted)
    together, logs = run(setting(num_clients=9, mission=again), strategy(), cohort=4)
    got, want = (s.ready(first_arrays(setting())) for s in (together, alone))
    assert torch.equal(got.classes, want.classes)
    assert torch.equal(got.counts, want.counts)
    assert_close(got.sums, want.sums, rtol=0, atol=1e-5)
    held = [
        len(setting(num_clients=9, mission=again).scenario.shard(c, 0, "train")) for c in range(9)
    ]
    assert sizes[:3] == [sum(held[:3]), sum(held[3:6]), sum(held[6:])]
    assert sum(len(log.cohort) for log in logs) == 4 * 9
