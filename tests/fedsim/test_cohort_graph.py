"""A block of clients that hold graphs computes what the per-client loop computes."""

import logging
from functools import partial

import pytest
import torch
from torch import nn

from clients.fedgnn import FedGNN
from clients.fedper import FedPer
from clients.fedprox import FedProx
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params, to_record
from fedsim.backbones.graph import GAT, GCN
from fedsim.backbones.heads import XavierLinear
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.cohort_graph import GraphDropout
from fedsim.cohort_graph_training import GraphBlock
from fedsim.cohort_plan import GRAPH_VALUES, MAX_BLOCK, Cohort
from fedsim.evaluation import Evaluation
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.graph_data import GraphDataset
from scenarios.graph_streams import NewNodes
from strategies.fedgnn import FedGNN as FedGNNServer
from strategies.fedper import FedPer as FedPerServer
from strategies.mean import Mean
from tests.scenarios.graph_toy import planted, scenario

CLIENTS, ROUNDS = 9, 3
SGD_RATE = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.01, weight_decay=1e-4)
AFTER_TRAINING = Evaluation(when="after_training", selection="best_validation")


def sparse():
    """Node features of which 39 in 40 are zero."""
    data = planted(num_nodes=180).data.clone()
    data.x = torch.nn.functional.one_hot(torch.arange(180) % 40, 40).float()
    return GraphDataset(name="sparse", data=data, num_classes=4)


def client(
    kind=SGD,
    *,
    dataset=None,
    backbone=GCN,
    head=nn.Linear,
    dropout=0.0,
    layers=2,
    hidden=8,
    evaluation=None,
    stream=None,
    experiences=1,
    options=None,
    **training,
):
    """Nine clients with unequal numbers of nodes, and a small network."""
    streams = {} if stream is None else {"stream": stream, "num_experiences": experiences}
    data = scenario(dataset=dataset or planted(num_nodes=181), num_clients=CLIENTS, **streams)
    assert len({len(data.shard(c, 0, "train")) for c in range(CLIENTS)}) > 1
    network = partial(
        backbone, input_shape=data.input_shape, hidden=hidden, num_layers=layers, dropout=dropout
    )
    setting = Setting(
        scenario=data,
        clock=Clock(num_experiences=experiences, rounds_per_experience=ROUNDS, evaluate_every=1),
        model=lambda: Model(network(), 4, head),
        seed=3,
        evaluation=evaluation or Evaluation(),
    )
    settings = {"optimizer": SGD_RATE, "batch_size": 0, "epochs": 2, **training}
    return kind(setting, training=LocalTraining(**settings), **(options or {}))


def run(served, cohort, *, server=Mean, fraction=1.0, **options):
    """Logs, final arrays, states and the reason why clients were not trained at once."""
    app = client_app_of(lambda _: served)
    grid = LocalGrid(app, CLIENTS, raise_errors=True, cohort=cohort)
    strategy = server(
        sampler=Uniform(seed=0, fraction=fraction), evaluation_sampler=Uniform(seed=0), **options
    )
    loop = Loop(
        strategy=strategy,
        grid=grid,
        roster=grid.roster,
        clock=served.setting.clock,
        seed=0,
        evaluation=served.setting.evaluation,
    )
    logs = list(loop.run(to_record(dict(initial_model(served.setting).state_dict()))))
    states = {c: grid.store.get(c) for c in grid.store.ids()}
    (reason,) = {c.reason for (kind, _), c in app._cohorts.items() if kind == "train"} or {None}
    return [log for log, _ in logs], to_params(logs[-1][1]), states, reason


def assert_equal(kind=SGD, *, cohort="auto", within=1e-6, server=Mean, running=None, **options):
    running = running or {}
    logs, alone, states, _ = run(client(kind, **options), "off", server=server, **running)
    ours, together, kept, reason = run(client(kind, **options), cohort, server=server, **running)
    assert reason is None
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=within, rtol=0)
    for mine, other in zip(ours[1:], logs[1:], strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, abs=1e-5, nan_ok=True)
        assert mine.cohort == other.cohort
        assert mine.num_examples == other.num_examples
        for a, b in zip(mine.evaluations, other.evaluations, strict=True):
            assert a.client_id == b.client_id
            assert a.metrics.keys() == b.metrics.keys()
            for name in b.metrics:
                assert a.metrics[name] == pytest.approx(b.metrics[name], abs=1e-5, nan_ok=True)
    assert kept.keys() == states.keys()
    for client_id, state in states.items():
        assert set(kept[client_id]) == set(state)
        for group in state.array_records:
            got, want = to_params(kept[client_id][group]), to_params(state[group])
            assert list(got) == list(want)
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-3)
    return ours


@pytest.fixture
def blocks(monkeypatch):
    """Sizes of the blocks of graphs that are trained."""
    seen = []
    train = GraphBlock.train

    def counted(self):
        seen.append(len(self.shards))
        return train(self)

    monkeypatch.setattr(GraphBlock, "train", counted)
    return seen


CASES = {
    "sgd": {},
    "dropout": {"dropout": 0.5},
    "sparse features": {"dataset": "sparse", "dropout": 0.3},
    "one layer": {"layers": 1},
    "three layers and another head": {"layers": 3, "head": XavierLinear, "dropout": 0.1},
    "momentum and a schedule": {
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "schedule": lambda progress: 1.0 - progress,
    },
    "gradients clipped client by client": {"clip_norm": 0.05},
    "proximal": {"kind": FedProx, "options": {"mu": 0.5}, "dropout": 0.5, "epochs": 3},
    "adam": {"optimizer": ADAM, "dropout": 0.5, "within": 1e-5},
    "moments stay and tests follow training": {
        "optimizer": ADAM,
        "keep_optimizer": True,
        "evaluation": AFTER_TRAINING,
        "dropout": 0.5,
        "epochs": 1,
        "within": 1e-5,
    },
    "some clients missed rounds": {
        "optimizer": ADAM,
        "keep_optimizer": True,
        "evaluation": AFTER_TRAINING,
        "cohort": 9,
        "running": {"fraction": 0.7},
        "within": 1e-5,
    },
    "private heads": {
        "kind": FedPer,
        "server": FedPerServer,
        "running": {"private": ["head."]},
        "evaluation": AFTER_TRAINING,
        "dropout": 0.5,
    },
    "alone": {"kind": FedPer, "server": FedPerServer, "running": {"private": [""]}},
}


@pytest.mark.parametrize("name", CASES)
def test_at_once_is_one_by_one(name, blocks):
    options = dict(CASES[name])
    if options.get("dataset") == "sparse":
        options["dataset"] = sparse()
    logs = assert_equal(**options)
    assert sum(blocks) >= (ROUNDS - 1) * 6
    if options.get("evaluation"):
        assert all(len(log.evaluations) == len(log.cohort) for log in logs[1:])


class Measures(SGD):
    def predict(self, model, batch, down, state):
        return super().predict(model, batch, down, state).flip(1)


def test_a_client_that_predicts_in_its_own_way_is_tested_so(blocks):
    logs = assert_equal(Measures, evaluation=AFTER_TRAINING)
    plain = assert_equal(evaluation=AFTER_TRAINING)
    assert logs[-1].evaluations[0].metrics != plain[-1].evaluations[0].metrics
    assert blocks == [CLIENTS] * 2 * ROUNDS


class Twice(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) + model(batch.inputs).square().mean()


class Inside(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) + model.head.weight.square().sum()


class Behind(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(self.model, batch, down, state) + self.model.head.bias.square().sum()


class Noisy(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + torch.rand(()))


class Unreached(SGD):
    def loss(self, model, batch, down, state):
        return sum(p.square().sum() for p in model.parameters())


class Eager(SGD):
    def batches(self, shard, down, state, rng):
        for _ in range(1 + down.client_id % 2):
            yield from super().batches(shard, down, state, rng)


class Altered(SGD):
    def __init__(self, setting, *, training):
        super().__init__(setting, training=training)
        self.model.head.register_forward_hook(lambda *parts: 2 * parts[-1])


class Frozen(SGD):
    def __init__(self, setting, *, training):
        super().__init__(setting, training=training)
        self.model.head.bias.requires_grad_(requires_grad=False)


DECLINED = {
    "another network": ({"backbone": GAT}, "GCN"),
    "another head": ({"head": lambda d, k: nn.Sequential(nn.Linear(d, k))}, "linear head"),
    "no bias": ({"head": partial(nn.Linear, bias=False)}, "bias"),
    "frozen": ({"kind": Frozen}, "frozen"),
    "a hook": ({"kind": Altered}, "altered"),
    "nodes that arrive": (
        {"stream": NewNodes(), "experiences": 2},
        "changes over time",
    ),
    "two passes": ({"kind": Twice}, "twice"),
    "a look inside": ({"kind": Inside}, "reads 'head'"),
    "a look behind": ({"kind": Behind}, "reads 'head'"),
    "random numbers": ({"kind": Noisy}, "random"),
    "no pass": ({"kind": Unreached}, "does not call"),
    "unequal steps": ({"kind": Eager}, "more steps"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_stacked_is_declined_and_trained_one_by_one(name, caplog):
    options, why = DECLINED[name]
    caplog.set_level(logging.INFO)
    _, alone, _, _ = run(client(**options), "off")
    _, together, _, reason = run(client(**options), "auto")
    assert why in reason
    assert sum("one by one" in record.message for record in caplog.records) == 1
    for tensor, other in zip(together.values(), alone.values(), strict=True):
        assert torch.equal(tensor, other)


def test_embeddings_of_foreign_nodes_are_declined_when_they_come():
    options = {"kind": FedGNN}
    _, alone, _, _ = run(client(**options), "off", server=FedGNNServer)
    _, together, _, reason = run(client(**options), "auto", server=FedGNNServer)
    assert "reads 'backbone'" in reason
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-6, rtol=0)


def test_a_block_that_goes_wrong_is_noticed(monkeypatch):
    monkeypatch.setattr(
        "fedsim.cohort_graph_training.GraphDropout",
        lambda rngs: GraphDropout([rng.manual_seed(1) for rng in rngs]),
    )
    _, alone, _, _ = run(client(dropout=0.5), "off")
    _, together, _, reason = run(client(dropout=0.5), "auto")
    assert "disagree on" in reason
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def size(**options):
    """Clients a block, and why there is but one."""
    served = client(**options)
    cohort = Cohort(served, "auto")
    arrays = dict(initial_model(served.setting).state_dict())
    tick = served.setting.clock.at(1, 0)
    found = cohort.size(Download(client_id=0, tick=tick, records={"arrays": arrays}), ClientState())
    return found, cohort.reason


def test_the_rule_says_when_company_pays():
    found, why = size()
    assert (found, why) == (MAX_BLOCK, None)
    found, why = size(hidden=400)
    assert why is None
    assert 2 <= found <= GRAPH_VALUES / (4 * 400 * 400)
    assert size(hidden=600) == (1, "a step is long enough to gain nothing from company")
    found, why = size(hidden=600, optimizer=ADAM)
    assert why is None
    assert found >= 2
