import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder, ShuffledOrder
from scenarios.partition import IID, Dirichlet
from scenarios.task_incremental import TaskIncremental
from scenarios.toy import toy


def make(cls=ClassIncremental, partition=None, num_clients=3, order=None):
    return cls(
        dataset=toy(num_classes=6, shape=[4], train_examples=180, test_examples=60, noise=0.3),
        partition=partition or IID(),
        order=order or ShuffledOrder(),
        num_clients=num_clients,
        num_experiences=3,
        seed=0,
    )


@pytest.mark.parametrize("cls", [ClassIncremental, TaskIncremental])
@pytest.mark.parametrize("split", ["train", "test"])
def test_streams_equal_shards(cls, split):
    scenario = make(cls)
    stream = getattr(scenario.streams(1), f"{split}_stream")
    assert len(stream) == 3
    for position, experience in enumerate(stream):
        number = scenario.experience_at(1, position)
        shard = scenario.shard(1, number, split)
        task = number if cls is TaskIncremental else 0
        rows = [experience.dataset[i] for i in range(len(experience.dataset))]
        assert torch.equal(torch.stack([r[0] for r in rows]), shard.inputs)
        assert [r[1] for r in rows] == shard.targets.tolist()
        assert list(experience.dataset.targets) == shard.targets.tolist()
        assert [r[2] for r in rows] == [task] * len(rows)
        assert list(experience.dataset.targets_task_labels) == [task] * len(rows)
        assert experience.task_labels == [task]
        assert experience.current_experience == position
        assert experience.classes_in_this_experience == sorted(set(shard.targets.tolist()))


def test_positions_follow_the_clients_own_order():
    scenario = make()
    orders = [
        [tuple(e.classes_in_this_experience) for e in scenario.streams(c).train_stream]
        for c in range(3)
    ]
    assert len({tuple(o) for o in orders}) > 1
    assert len({tuple(sorted(o)) for o in orders}) == 1


def test_timeline_of_classes():
    stream = make(order=SameOrder()).streams(0).train_stream
    classes = [set(e.classes_in_this_experience) for e in stream]
    assert set(stream[1].previous_classes) == classes[0]
    assert set(stream[1].classes_seen_so_far) == classes[0] | classes[1]
    assert set(stream[1].future_classes) == classes[2]


def test_experience_without_data_is_there_and_empty():
    scenario = make(partition=Dirichlet(alpha=0.01), num_clients=30)
    client, number = next(
        (c, e) for c in range(30) for e in range(3) if len(scenario.indices(c, e, "train")) == 0
    )
    stream = scenario.streams(client).train_stream
    position = [scenario.experience_at(client, i) for i in range(3)].index(number)
    assert len(stream) == 3
    assert len(stream[position].dataset) == 0
    assert stream[position].classes_in_this_experience == []
    assert stream[position].task_labels == [0]


def test_examples_are_built_when_first_read(monkeypatch):
    scenario = make()
    built = []
    original = scenario.build

    def build(indices, experience, split):
        built.append((experience, split))
        return original(indices, experience, split)

    monkeypatch.setattr(scenario, "build", build)
    stream = scenario.streams(0).train_stream
    assert built == []
    assert len(stream[0].dataset[0]) == 3
    assert built == [(scenario.experience_at(0, 0), "train")]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_carry_their_examples_and_not_the_scenario(duplicate):
    scenario = make()
    dataset = scenario.streams(0).train_stream[0].dataset
    twin = duplicate(dataset)
    assert torch.equal(twin[3][0], dataset[3][0])
    assert list(twin.targets) == list(dataset.targets)
    everything = scenario.dataset.train.take(np.arange(180))
    largest = everything.numel() * everything.element_size() + 180 * 8
    assert len(pickle.dumps(dataset)) < 2 * largest + 5000


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.classifier = nn.Linear(16, 6)

    def forward(self, x):
        return self.classifier(self.features(x))


def strategy(name, net):
    from avalanche.training import DER, ICaRL, Naive
    from avalanche.training.plugins import (
        AGEMPlugin,
        EvaluationPlugin,
        EWCPlugin,
        GEMPlugin,
        LwFPlugin,
        ReplayPlugin,
        SynapticIntelligencePlugin,
    )

    options = {
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 32,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    if name == "icarl":
        return ICaRL(
            feature_extractor=net.features,
            classifier=net.classifier,
            memory_size=12,
            buffer_transform=None,
            fixed_memory=True,
            **options,
        )
    if name == "der":
        return DER(model=net, criterion=nn.CrossEntropyLoss(), mem_size=20, **options)
    plugins = {
        "naive": [],
        "ewc": [EWCPlugin(ewc_lambda=1.0)],
        "lwf": [LwFPlugin(alpha=1.0, temperature=2.0)],
        "replay": [ReplayPlugin(mem_size=20)],
        "gem": [GEMPlugin(patterns_per_experience=10, memory_strength=0.5)],
        "agem": [AGEMPlugin(patterns_per_experience=10, sample_size=10)],
        "si": [SynapticIntelligencePlugin(si_lambda=0.1)],
    }
    return Naive(model=net, criterion=nn.CrossEntropyLoss(), plugins=plugins[name], **options)


@pytest.mark.parametrize(
    "name", ["naive", "ewc", "lwf", "replay", "gem", "agem", "si", "icarl", "der"]
)
@pytest.mark.parametrize("cls", [ClassIncremental, TaskIncremental])
def test_avalanche_strategies_train_on_the_streams(name, cls):
    torch.manual_seed(0)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    trained = strategy(name, net)
    streams = make(cls, num_clients=2).streams(1)
    for experience in streams.train_stream:
        trained.train(experience)
    trained.eval(streams.test_stream)
    after = net.state_dict()
    assert all(torch.isfinite(values).all() for values in after.values())
    assert any(not torch.equal(before[k], values) for k, values in after.items())


def test_training_learns_the_clients_classes():
    torch.manual_seed(0)
    net = Net()
    trained = strategy("naive", net)
    experience = make(num_clients=1).streams(0).train_stream[0]
    for _ in range(5):
        trained.train(experience)
    inputs = torch.stack([row[0] for row in experience.dataset])
    with torch.no_grad():
        hits = net(inputs).argmax(1) == torch.tensor(list(experience.dataset.targets))
    assert hits.float().mean() > 0.9


def test_replay_buffer_keeps_earlier_classes():
    torch.manual_seed(0)
    trained = strategy("replay", Net())
    stream = make(num_clients=2).streams(0).train_stream
    for experience in stream:
        trained.train(experience)
    buffer = trained.plugins[0].storage_policy.buffer
    assert len(buffer) == 20
    assert set(buffer.targets) & set(stream[0].classes_in_this_experience)
    assert set(buffer.targets_task_labels) == {0}
