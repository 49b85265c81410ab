from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsim.client import Client, initial_model
from fedsim.clock import Clock, LateClock
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.training import SpareOptimizer, constant, cosine, steps
from fedsim.wire import Download
from tests.fedsim.builders import small_client, small_setting, small_training


def down(client, round_=1, client_id=0, arrays=None):
    arrays = arrays or dict(initial_model(client.setting).state_dict())
    tick = client.setting.clock.at(round_, client_id)
    return Download(client_id=client_id, tick=tick, records={"arrays": arrays})


def test_a_round_is_plain_gradient_descent_bit_for_bit():
    client = small_client()
    setting = client.setting
    got = client.train(down(client), ClientState()).records["arrays"]
    model = initial_model(setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shard = setting.scenario.shard(0, 0, "train")
    order = torch.randperm(len(shard), generator=generator(0, "train", 1, 0))
    for part in order.split(4):
        optimizer.zero_grad()
        cross_entropy(model(shard.inputs[part]), shard.targets[part]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(got[name], value)


def test_uploads_do_not_change_when_the_next_client_trains():
    client = small_client()
    first = client.train(down(client), ClientState()).records["arrays"]
    kept = {name: value.clone() for name, value in first.items()}
    client.train(down(client, client_id=1), ClientState())
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_training_leaves_the_global_generator_alone():
    client = small_client()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    client.train(down(client), ClientState())
    assert torch.equal(torch.rand(1), expected)


def test_a_download_that_does_not_fit_is_named():
    client = small_client()
    arrays = dict(initial_model(client.setting).state_dict())
    with pytest.raises(ValueError, match=r"head\.bias"):
        client.train(down(client, arrays={"head.weight": arrays["head.weight"]}), ClientState())
    arrays["head.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"'head.bias': expected shape \(4,\), got \(7,\)"):
        client.train(down(client, arrays=arrays), ClientState())


def test_a_client_that_has_not_joined_is_idle():
    clock = LateClock(
        num_experiences=2, rounds_per_experience=2, late_fraction=1.0, latest_join=4, seed=0
    )
    client = small_client(small_setting(clock=clock))
    late = next(c for c in range(4) if clock.joins(c) > 1)
    upload = client.train(down(client, 1, late), ClientState())
    assert (upload.num_examples, upload.records) == (0, {})


class Recorder(Client):
    """Notes which data is consolidated, and when."""

    def __init__(self, setting, *, training):
        super().__init__(setting, training=training)
        self.calls = []

    def consolidate(self, model, shard, down, state):
        self.calls.append((down.tick.round, sorted(set(shard.targets.tolist()))))


def test_every_visited_experience_is_consolidated_once_when_it_is_over():
    client = small_client(kind=Recorder)
    state = ClientState()
    for round_ in (1, 2, 3, 4):
        client.train(down(client, round_), state)
    assert client.calls == [(3, [0, 1])]


def test_a_client_that_missed_the_boundary_consolidates_when_it_is_back():
    client = small_client(
        small_setting(clock=Clock(num_experiences=2, rounds_per_experience=3)), kind=Recorder
    )
    state = ClientState()
    for round_ in (2, 6):
        client.train(down(client, round_), state)
    assert client.calls == [(6, [0, 1])]


def test_a_plain_client_remembers_nothing():
    state = ClientState()
    client = small_client()
    client.train(down(client), state)
    assert len(state) == 0
    assert state.count("position", -1) == -1


def test_moments_can_stay_with_the_client():
    adam = partial(torch.optim.Adam, lr=0.1)
    start = dict(initial_model(small_setting()).state_dict())
    weights = {}
    for keep in (True, False):
        client = small_client(training=small_training(optimizer=adam, keep_optimizer=keep))
        state = ClientState()
        for round_ in (1, 2):
            out = client.train(down(client, round_, arrays=start), state)
        weights[keep] = out.records["arrays"]["head.weight"]
        assert ("optimizer" in state) is keep
    assert not torch.equal(weights[True], weights[False])
    # the second round of the keeping client continues one Adam over both rounds
    client = small_client(training=small_training(optimizer=adam))
    model = initial_model(client.setting)
    optimizer = adam(model.parameters())
    shard = client.scenario.shard(0, 0, "train")
    for round_ in (1, 2):
        model.load_state_dict(start)
        order = torch.randperm(len(shard), generator=generator(0, "train", round_, 0))
        for part in order.split(4):
            optimizer.zero_grad()
            cross_entropy(model(shard.inputs[part]), shard.targets[part]).backward()
            optimizer.step()
    assert torch.equal(model.head.weight, weights[True])


def test_evaluation_covers_every_experience_and_agrees_with_the_model():
    client = small_client()
    upload = client.evaluate(down(client), ClientState())
    model = initial_model(client.setting)
    for e in range(2):
        shard = client.scenario.shard(0, e, "test")
        right = (model(shard.inputs).argmax(1) == shard.targets).float().mean().item()
        assert upload.metrics["accuracy"][e] == pytest.approx(right)
        loss = cross_entropy(model(shard.inputs), shard.targets).item()
        assert upload.metrics["loss"][e] == pytest.approx(loss, rel=1e-5)


def test_the_servers_evaluation_is_the_weighted_mean_of_the_clients():
    client = small_client()
    arrays = dict(initial_model(client.setting).state_dict())
    tick = client.setting.clock.at(1)
    server = client.evaluate(
        Download(client_id=None, tick=tick, records={"arrays": arrays}), ClientState()
    )
    parts = [client.evaluate(down(client, client_id=c), ClientState()).metrics for c in range(4)]
    for e in range(2):
        n = [p["examples"][e] for p in parts]
        mean = sum(p["accuracy"][e] * k for p, k in zip(parts, n, strict=True)) / sum(n)
        assert server.metrics["accuracy"][e] == pytest.approx(mean)
        assert server.metrics["examples"][e] == sum(n)


def test_schedules_by_value():
    assert constant(0.7) == 1.0
    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1.0, final=0.1) == pytest.approx(0.1)
    assert [steps(p) for p in (0.0, 0.5, 0.9)] == pytest.approx([1.0, 0.1, 0.01])


def test_the_schedule_scales_the_rate():
    start = down(small_client())
    slow = small_client(training=small_training(schedule=lambda _: 0.0))
    out = slow.train(start, ClientState()).records["arrays"]
    assert torch.equal(out["head.weight"], start.records["arrays"]["head.weight"])


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": -2}, {"clip_norm": 0.0}])
def test_impossible_training_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small_training(**wrong)


def test_an_optimizer_serves_the_next_client_without_any_memory():
    adam = partial(torch.optim.Adam, lr=0.1)
    client = small_client(training=small_training(optimizer=adam))
    client.train(down(client, client_id=1), ClientState())
    second = client.train(down(client, client_id=2), ClientState()).records["arrays"]
    fresh = small_client(training=small_training(optimizer=adam))
    alone = fresh.train(down(fresh, client_id=2), ClientState()).records["arrays"]
    assert all(torch.equal(second[name], alone[name]) for name in alone)


def test_optimizers_that_remember_elsewhere_are_made_anew():
    lbfgs = partial(torch.optim.LBFGS, lr=0.1)
    spare = SpareOptimizer(small_training(optimizer=lbfgs))
    assert spare.renewed([torch.nn.Parameter(torch.ones(1))], 1.0) is None
    spare = SpareOptimizer(small_training())
    first = torch.nn.Parameter(torch.ones(1))
    assert spare.renewed([first], 0.5).param_groups[0]["lr"] == 0.05
    assert spare.renewed([first], 1.0).param_groups[0]["lr"] == 0.1
    assert spare.renewed([torch.nn.Parameter(torch.ones(1))], 1.0) is None
