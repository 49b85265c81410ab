from functools import partial

import pytest
import torch

from clients.probe import Probe
from clients.sgd import SGD
from fedsim.backbones.vision import MLP, Conv4, Flatten
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.single import Single
from scenarios.toy import toy

TRAINING = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=2, batch_size=8)


def setting(backbone):
    scenario = Single(
        dataset=toy(num_classes=4, shape=[1, 8, 8], train_examples=40, test_examples=8),
        partition=IID(),
        order=SameOrder(),
        num_clients=1,
        seed=0,
    )
    clock = Clock(num_experiences=1, rounds_per_experience=1)
    return Setting(
        scenario=scenario,
        clock=clock,
        model=lambda: Model(backbone(input_shape=(1, 8, 8)), 4),
        seed=0,
    )


def trained(client):
    arrays = dict(initial_model(client.setting).state_dict())
    down = Download(client_id=0, tick=client.setting.clock.at(1, 0), records={"arrays": arrays})
    return arrays, client.train(down, ClientState()).records["arrays"]


@pytest.mark.parametrize("backbone", [Conv4, partial(MLP, hidden=[16])])
def test_only_the_head_moves_and_no_running_statistic(backbone):
    before, after = trained(Probe(setting(backbone), training=TRAINING))
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("head.")), name


def test_without_a_trainable_backbone_it_is_plain_local_training():
    _, probe = trained(Probe(setting(Flatten), training=TRAINING))
    _, plain = trained(SGD(setting(Flatten), training=TRAINING))
    assert all(torch.equal(probe[name], plain[name]) for name in plain)


def test_label_smoothing_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="label_smoothing"):
        Probe(setting(Flatten), training=TRAINING, label_smoothing=1.0)
