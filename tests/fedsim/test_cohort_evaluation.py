"""Tests of a block of clients at once say what the tests of each client say."""

from functools import partial

import pytest
import torch
from flwr.app import MessageType
from flwr.serverapp.strategy import FedAvg

from clients.ewc import EWC
from clients.replay import Replay
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.backbones.vision import Conv4
from fedsim.client import Client
from fedsim.grid import LocalGrid
from tests.fedsim.builders import first_arrays, small_loop, small_setting, small_training

CLIENTS = 9


def measured(client, cohort, **options):
    """Every round's tests, and why clients were tested one by one."""
    app = client_app_of(lambda _: client)
    grid = LocalGrid(app, CLIENTS, raise_errors=True, cohort=cohort, **options)
    strategy = FedAvg(1.0, 1.0, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    loop = small_loop(strategy, client, grid=grid)
    logs = [log for log, _ in loop.run(first_arrays(client.setting))]
    cohorts = {kind: c for (kind, _), c in app._cohorts.items()}
    reason = cohorts[MessageType.EVALUATE].reason if cohorts else None
    return [log.evaluations for log in logs], reason


def client_of(kind=SGD, **options):
    setting = small_setting(num_clients=CLIENTS, **options)
    return kind(setting, training=small_training())


def assert_same(got, want):
    assert [len(row) for row in got] == [len(row) for row in want]
    assert sum(map(len, want)) > 0
    ours_all, theirs_all = ([upload for row in rows for upload in row] for rows in (got, want))
    for ours, theirs in zip(ours_all, theirs_all, strict=True):
        assert (ours.client_id, ours.num_examples) == (theirs.client_id, theirs.num_examples)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, values in theirs.metrics.items():
            assert ours.metrics[name] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True)


MODELS = {
    "linear": {},
    "batch norm": {"shape": (1, 16, 16), "backbone": partial(Conv4, width=4, norm="batch")},
}


@pytest.mark.parametrize("cohort", ["auto", 4])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "kind",
    [
        SGD,
        partial(EWC, mode="online", decay=1.0, penalty=1.0),
        partial(Replay, memory=4, replay_batch=2),
    ],
)
def test_what_is_measured_is_the_same(kind, model, cohort):
    want, _ = measured(client_of(kind, **MODELS[model]), "off")
    got, reason = measured(client_of(kind, **MODELS[model]), cohort)
    assert reason is None
    assert_same(got, want)


def test_a_block_is_one_forward_pass(monkeypatch):
    client, sizes = client_of(num_experiences=1), []
    predict = Client.predict

    def counted(self, model, batch, down, state):
        sizes.append(len(batch.targets))
        return predict(self, model, batch, down, state)

    monkeypatch.setattr(SGD, "predict", counted, raising=False)
    tests, _ = measured(client, "auto")
    held = [int(upload.num_examples) for upload in tests[-1]]
    assert sum(held) == 40
    assert sizes[0] == 40  # all clients, then the first one alone to compare
    assert sizes == [40, held[0], 40][: len(sizes)]


def test_many_examples_are_split(monkeypatch):
    monkeypatch.setattr("fedsim.cohort_evaluation.EXAMPLES", 7)
    want, _ = measured(client_of(), "off")
    got, reason = measured(client_of(), "auto")
    assert reason is None
    assert_same(got, want)


class Private(SGD):
    """Keeps its own head."""

    def load(self, model, down, state):
        own = state.get("private", {})
        self.load_arrays({**down.records["arrays"], **own})

    def upload(self, model, shard, down, state):
        records = super().upload(model, shard, down, state)
        state["private"] = {n: t for n, t in records["arrays"].items() if n.startswith("head.")}
        return records


def test_models_of_their_own_are_tested_one_by_one():
    want, _ = measured(client_of(Private), "off")
    got, reason = measured(client_of(Private), "auto")
    assert "private" in reason
    assert_same(got, want)


class Numbered(SGD):
    """Predicts by who it is."""

    def predict(self, model, batch, down, state):
        return super().predict(model, batch, down, state) + (down.client_id or 0)


class Forgetful(SGD):
    """Predicts what happened to be loaded before."""

    shift = 0.0

    def predict(self, model, batch, down, state):
        self.shift += 1000.0
        scores = super().predict(model, batch, down, state)
        return scores + self.shift * torch.arange(scores.shape[1]).roll(int(self.shift / 1000))


class Measured(SGD):
    """Measures something else."""

    def measure(self, down, state):
        return {**super().measure(down, state), "more": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Numbered, "number"), (Forgetful, "disagree"), (Measured, "overrides measure")],
)
def test_what_depends_on_the_client_is_tested_one_by_one(kind, words):
    got, reason = measured(client_of(kind), "auto")
    assert words in reason
    assert [u.client_id for u in got[-1]] == list(range(CLIENTS))


def test_blocks_are_tested_in_workers_too():
    want, _ = measured(client_of(), "off")
    got, _ = measured(client_of(), 3, workers=2)
    assert_same(got, want)


def test_one_by_one_is_left_as_it_is():
    client = client_of()
    cohort = client_app_of(lambda _: client)
    grid = LocalGrid(cohort, CLIENTS, cohort="off")
    strategy = FedAvg(1.0, 1.0, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    list(small_loop(strategy, client, grid=grid).run(first_arrays(client.setting)))
    assert not cohort._cohorts
