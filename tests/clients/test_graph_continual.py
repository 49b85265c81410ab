"""Continual methods whose examples are nodes, which cannot be cut from their graph."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from clients.avalanche import Avalanche
from clients.ewc import EWC
from clients.icarl import ICaRL
from clients.replay import Replay
from fedsim.backbones.graph import GCN
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.graph_streams import NewClasses
from tests.scenarios.graph_toy import scenario

TRAINING = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1))


def setting(*, task_labels=False):
    stream = NewClasses(class_order="sorted", visible="all", task_labels=task_labels)
    data = scenario(num_experiences=2, stream=stream)
    gcn = partial(GCN, input_shape=data.input_shape, hidden=4)
    clock = Clock(num_experiences=2, rounds_per_experience=1)
    return Setting(scenario=data, clock=clock, model=lambda: Model(gcn(), 4), seed=0)


def second_round(client):
    """The download, the state and the shard of client 0 when the first experience is over."""
    arrays = {name: t.clone() for name, t in initial_model(client.setting).state_dict().items()}
    state = ClientState()
    downs = [
        Download(client_id=0, tick=client.setting.clock.at(r, 0), records={"arrays": arrays})
        for r in (1, 2)
    ]
    for down in downs:
        client.train(down, state)
    return downs[1], state, client.scenario.shard(0, 1, "train")


@pytest.mark.parametrize("task_labels", [False, True])
def test_remembered_nodes_become_rows_of_the_same_graph(task_labels):
    client = Replay(setting(task_labels=task_labels), training=TRAINING, memory=3, replay_batch=8)
    down, state, shard = second_round(client)
    held = state["memory"]["indices"]
    (batch,) = client.batches(shard, down, state, torch.Generator())
    rows = batch.inputs.n_id[batch.inputs.mask]
    assert sorted(rows.tolist()) == sorted([*held.tolist(), *shard.indices.tolist()])
    assert torch.equal(batch.targets, rows % 4)  # the planted classes
    assert int(shard.inputs.mask.sum()) == len(shard)  # the stored shard is as it was
    if task_labels:
        assert torch.equal(batch.tasks, (rows % 4) // 2)
    else:
        assert batch.tasks is None


def test_importance_on_a_graph_is_the_empirical_fisher():
    client = EWC(setting(), training=TRAINING, penalty=1.0)
    down, state, _ = second_round(client)
    shard = client.scenario.shard(0, 0, "train")
    model = initial_model(client.setting).eval()
    assert torch.equal(model.head.weight, down.records["arrays"]["head.weight"])
    expected = torch.zeros_like(model.head.weight)
    for node in range(len(shard)):
        loss = functional.cross_entropy(model(shard.inputs)[[node]], shard.targets[[node]])
        expected += torch.autograd.grad(loss, model.head.weight)[0].square() / len(shard)
    torch.testing.assert_close(state["ewc-importance-0"]["head.weight"], expected)


def test_methods_that_move_single_examples_are_refused_before_work():
    from avalanche.training.supervised import Naive

    with pytest.raises(ValueError, match="cannot be cut from their graph"):
        ICaRL(setting(), training=TRAINING, exemplars=2)
    with pytest.raises(ValueError, match="cannot be cut from their graph"):
        Avalanche(setting(), training=TRAINING, strategy=Naive)
