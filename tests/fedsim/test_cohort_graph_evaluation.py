"""Tests of a block of clients that hold graphs say what the tests of each client say."""

import pytest
import torch

from clients.fedper import FedPer
from clients.sgd import SGD
from fedsim.backbones.graph import GAT
from fedsim.client import Client, initial_model
from fedsim.cohort_evaluation import CohortEvaluation
from fedsim.cohort_graph_evaluation import GraphEvaluation
from fedsim.cohort_plan import GRAPH_VALUES, MAX_BLOCK
from fedsim.cohort_views import UnstackableError
from fedsim.evaluation import Evaluation
from fedsim.state import ClientState
from fedsim.wire import Download
from scenarios.graph_streams import NewNodes
from strategies.fedper import FedPer as FedPerServer
from tests.fedsim.test_cohort_graph import CLIENTS, client, run, sparse

VALIDATED = Evaluation(selection="best_validation")


def turns(served, *, own):
    """What the clients received: models of their own, or the same."""
    torch.manual_seed(1)
    tick = served.setting.clock.at(1, 0)
    first = {n: t + 0.3 for n, t in initial_model(served.setting).state_dict().items()}
    downs = []
    for client_id in range(CLIENTS):
        noise = {n: 0.1 * torch.randn(t.shape) for n, t in first.items()}
        arrays = {n: t + noise[n] for n, t in first.items()} if own else first
        downs.append(Download(client_id=client_id, tick=tick, records={"arrays": arrays}))
    return downs, [ClientState() for _ in downs]


def assert_same(got, want):
    assert len(got) == len(want) > 0
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.client_id, ours.num_examples) == (theirs.client_id, theirs.num_examples)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, values in theirs.metrics.items():
            assert ours.metrics[name] == pytest.approx(values, abs=1e-6, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_one_pass_says_what_every_client_says(kind, own, monkeypatch):
    served = client(
        dataset=sparse() if kind == "sparse" else None, dropout=0.5, evaluation=VALIDATED, layers=3
    )
    downs, states = turns(served, own=own)
    want = [served.evaluate(*turn) for turn in zip(downs, states, strict=True)]
    assert {"val_accuracy", "loss"} <= want[0].metrics.keys()
    assert len({upload.metrics["loss"][0] for upload in want}) == CLIENTS
    tests = CohortEvaluation(served, "auto")
    assert tests.size(downs[0], states[0]) == MAX_BLOCK
    assert_same(tests.run(downs, states, lambda place: ClientState()), want)
    alone = []
    monkeypatch.setattr(Client, "evaluate", lambda *_: alone.append(1))
    assert_same(tests.run(downs, states, lambda place: ClientState()), want)
    assert not alone, "only the first block is checked"


def test_private_heads_are_tested_at_once():
    seen = []
    whole = GraphEvaluation.run

    def counted(self, downs, states):
        seen.append(len(downs))
        return whole(self, downs, states)

    options = {"server": FedPerServer, "private": ["head."]}
    with pytest.MonkeyPatch.context() as patch:
        want, arrays, *_ = run(client(FedPer), "off", **options)
        patch.setattr(GraphEvaluation, "run", counted)
        got, other, *_ = run(client(FedPer), "auto", **options)
    assert seen == [CLIENTS] * len(want[1:])
    for name, tensor in arrays.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)
    for mine, theirs in zip(got[1:], want[1:], strict=True):
        for ours, wanted in zip(mine.evaluations, theirs.evaluations, strict=True):
            assert ours.metrics["accuracy"] == wanted.metrics["accuracy"]
            assert ours.metrics["loss"] == pytest.approx(wanted.metrics["loss"], abs=1e-5)


class Backwards(SGD):
    def predict(self, model, batch, down, state):
        return super().predict(model, batch, down, state).flip(1)


DECLINED = {
    "another network": ({"backbone": GAT}, "GCN"),
    "another prediction": ({"kind": Backwards}, "overrides predict"),
    "nodes that arrive": ({"stream": NewNodes(), "experiences": 2}, "changes over time"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_stacked_is_tested_one_by_one(name):
    options, why = DECLINED[name]
    served = client(**options)
    downs, states = turns(served, own=False)
    tests = CohortEvaluation(served, "auto")
    assert tests.size(downs[0], states[0]) == 1
    assert why in tests.reason
    tests = CohortEvaluation(served, 4)
    with pytest.raises(UnstackableError, match=why):
        tests.run(downs, states, lambda place: ClientState())


def test_a_pass_that_goes_wrong_is_noticed(monkeypatch):
    served = client()
    downs, states = turns(served, own=True)
    loaded = GraphEvaluation._loaded
    monkeypatch.setattr(
        GraphEvaluation, "_loaded", lambda *given: {n: -t for n, t in loaded(*given).items()}
    )
    with pytest.raises(UnstackableError, match="disagree"):
        CohortEvaluation(served, "auto").run(downs, states, lambda place: ClientState())


def test_large_models_make_small_blocks():
    served = client(hidden=2000)
    downs, states = turns(served, own=False)
    size = CohortEvaluation(served, "auto").size(downs[0], states[0])
    weights = sum(t.numel() for t in served.tensors().values())
    assert 2 <= size <= GRAPH_VALUES / weights
