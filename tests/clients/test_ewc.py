from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients.ewc import EWC
from clients.sgd import SGD
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.toy import toy

TRAINING = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1), batch_size=4)


class Flat(nn.Module):
    num_features = 4

    def forward(self, inputs):
        return inputs


def setting(rounds=2):
    scenario = ClassIncremental(
        dataset=toy(num_classes=6, shape=[4], train_examples=60, test_examples=12),
        partition=IID(),
        order=SameOrder(),
        num_clients=2,
        num_experiences=3,
        seed=0,
    )
    clock = Clock(num_experiences=3, rounds_per_experience=rounds)
    return Setting(scenario=scenario, clock=clock, model=lambda: Model(Flat(), 6), seed=0)


def run(client, state, rounds):
    """Weights after the given rounds of client 0, alone in the federation."""
    arrays = {name: t.clone() for name, t in initial_model(client.setting).state_dict().items()}
    downloads = []
    for round_ in rounds:
        tick = client.setting.clock.at(round_, 0)
        downloads.append(arrays)
        down = Download(client_id=0, tick=tick, records={"arrays": arrays})
        arrays = client.train(down, state).records["arrays"]
    return arrays, downloads


def test_without_penalty_it_is_plain_local_training_bit_for_bit():
    plain, _ = run(SGD(setting(), training=TRAINING), ClientState(), range(1, 7))
    ewc, _ = run(EWC(setting(), training=TRAINING, penalty=0.0), ClientState(), range(1, 7))
    assert all(torch.equal(plain[name], ewc[name]) for name in plain)


def test_an_experience_is_consolidated_once_with_the_download_that_follows_it():
    client, state = EWC(setting(), training=TRAINING, penalty=1.0), ClientState()
    _, downloads = run(client, state, range(1, 6))  # the third experience has begun
    assert [name for name in sorted(state) if "anchor" in name] == ["ewc-anchor-0", "ewc-anchor-1"]
    for number, round_ in enumerate([3, 5]):
        anchor = state[f"ewc-anchor-{number}"]
        assert torch.equal(anchor["head.weight"], downloads[round_ - 1]["head.weight"])


def test_importance_is_the_empirical_fisher_of_the_finished_experience():
    client, state = EWC(setting(), training=TRAINING, penalty=1.0), ClientState()
    _, downloads = run(client, state, [1, 3])
    shard = client.scenario.shard(0, 0, "train")
    weight = downloads[1]["head.weight"].clone().requires_grad_()
    expected = torch.zeros_like(weight)
    for x, y in zip(shard.inputs, shard.targets, strict=True):
        logits = functional.linear(x, weight, downloads[1]["head.bias"])
        loss = functional.cross_entropy(logits[None], y[None])
        expected += torch.autograd.grad(loss, weight)[0].square() / len(shard)
    torch.testing.assert_close(state["ewc-importance-0"]["head.weight"], expected)


def test_a_missed_boundary_consolidates_the_experience_that_was_trained_on():
    client, state = EWC(setting(), training=TRAINING, penalty=1.0), ClientState()
    run(client, state, [1, 5])  # the second experience passed without this client
    assert state.count("ewc-experiences") == 1
    assert "ewc-anchor-1" not in state


def test_online_mode_keeps_one_anchor_and_decays_the_past():
    rounds = [1, 3, 5]
    separate, online = ClientState(), ClientState()
    run(EWC(setting(), training=TRAINING, penalty=0.0), separate, rounds)
    client = EWC(setting(), training=TRAINING, penalty=0.0, mode="online", decay=0.5)
    _, downloads = run(client, online, rounds)
    assert [name for name in sorted(online) if "anchor" in name] == ["ewc-anchor-0"]
    old, new = (separate[f"ewc-importance-{k}"]["head.weight"] for k in (0, 1))
    torch.testing.assert_close(online["ewc-importance-0"]["head.weight"], 0.5 * old + new)
    assert torch.equal(online["ewc-anchor-0"]["head.bias"], downloads[2]["head.bias"])


def test_the_penalty_holds_important_weights():
    moved = {}
    slow = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.01), batch_size=4, epochs=10)
    for penalty in (0.0, 30.0):
        client, state = EWC(setting(), training=slow, penalty=penalty), ClientState()
        end, downloads = run(client, state, [1, 2, 3, 4])
        importance = state["ewc-importance-0"]["head.weight"]
        change = (end["head.weight"] - downloads[2]["head.weight"]).square()
        moved[penalty] = (importance * change).sum()
    assert moved[30.0] < 0.5 * moved[0.0]


def test_fisher_examples_limits_the_measurement():
    client = EWC(setting(), training=TRAINING, penalty=1.0, fisher_examples=1)
    state = ClientState()
    _, downloads = run(client, state, [1, 3])
    shard = client.scenario.shard(0, 0, "train")
    weight = downloads[1]["head.weight"].clone().requires_grad_()
    logits = functional.linear(shard.inputs[:1], weight, downloads[1]["head.bias"])
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, shard.targets[:1]), weight)
    torch.testing.assert_close(state["ewc-importance-0"]["head.weight"], gradient.square())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": -1.0}, "penalty must be 0 or more"),
        ({"mode": "both"}, "mode must be"),
        ({"mode": "online"}, "decay belongs to mode 'online'"),
        ({"decay": 0.5}, "decay belongs to mode 'online'"),
        ({"mode": "online", "decay": 1.5}, r"decay must lie in \[0, 1\]"),
        ({"fisher_examples": -1}, "fisher_examples must be 0 or more"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EWC(setting(), training=TRAINING, **{"penalty": 1.0, **options})
