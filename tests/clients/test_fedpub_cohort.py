"""Clients trained at once against the same clients trained one by one."""

from functools import partial

import pytest
import torch

from clients.fedpub import FedPub, Masking
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.backbones.graph import GAT, GCN
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.evaluation import Evaluation
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.state import ClientState
from fedsim.training import LocalTraining, cosine
from fedsim.wire import Download
from scenarios.graph_data import GraphDataset
from strategies.fedpub import FedPub as Server
from tests.scenarios.graph_toy import planted, scenario

ROUNDS = 4
ADAM = partial(torch.optim.Adam, lr=0.05, weight_decay=1e-4)


def sparse_graph():
    """Node features of which 97 in 100 are zero."""
    dataset = planted()
    data = dataset.data.clone()
    data.x = torch.nn.functional.one_hot(torch.arange(80) % 40, 40).float()
    return GraphDataset(name="sparse", data=data, num_classes=4)


def client(
    *,
    dataset=None,
    layers=2,
    optimizer=ADAM,
    epochs=1,
    backbone=GCN,
    keep=True,
    clip=None,
    **masking,
):
    data = scenario(dataset=dataset or planted())
    network = partial(backbone, input_shape=data.input_shape, hidden=8, num_layers=layers)
    setting = Setting(
        scenario=data,
        clock=Clock(num_experiences=1, rounds_per_experience=ROUNDS, evaluate_every=2),
        model=lambda: Model(network(), 4),
        seed=3,
        evaluation=Evaluation(when="after_training", selection="best_validation"),
    )
    training = LocalTraining(
        optimizer=optimizer,
        epochs=epochs,
        batch_size=0,
        keep_optimizer=keep,
        schedule=cosine,
        clip_norm=clip,
    )
    proxy = {"num_blocks": 2, "block_size": 5, "p_in": 0.5}
    return FedPub(setting, training=training, masking=Masking(**masking), proxy=proxy)


def down(served, round_, client_id, arrays):
    tick = served.setting.clock.at(round_, client_id)
    return Download(client_id=client_id, tick=tick, records={"arrays": arrays})


def rounds(served, at_once, cohorts=((0, 1, 2, 3),) * ROUNDS):
    """Uploads of every round, each client going on from its own upload, and the states."""
    start = dict(initial_model(served.setting).state_dict())
    arrays, states, found = [start] * 4, [ClientState() for _ in range(4)], []
    for number, cohort in enumerate(cohorts, start=1):
        downs = [down(served, number, c, arrays[c]) for c in cohort]
        mine = [states[c] for c in cohort]
        if at_once:
            uploads = served.train_cohort(downs, mine)
        else:
            uploads = [served.train(*pair) for pair in zip(downs, mine, strict=True)]
        for upload in uploads:
            arrays[upload.client_id] = {n: t.clone() for n, t in upload.records["arrays"].items()}
        found.append(uploads)
    return found, states


def assert_same(ours, theirs):
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert [u.client_id for u in mine] == [u.client_id for u in other]
        for a, b in zip(mine, other, strict=True):
            assert a.num_examples == b.num_examples
            assert a.records.keys() == b.records.keys()
            for name in a.records:
                assert list(a.records[name]) == list(b.records[name])
                for key in a.records[name]:
                    torch.testing.assert_close(
                        a.records[name][key], b.records[name][key], atol=2e-5, rtol=1e-4
                    )
            assert a.metrics.keys() == b.metrics.keys()
            for key in a.metrics:
                assert a.metrics[key] == pytest.approx(b.metrics[key], rel=1e-4, abs=1e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert set(a) == set(b)
        for group in a:
            assert list(a[group]) == list(b[group])
            for key in a[group]:
                torch.testing.assert_close(a[group][key], b[group][key], atol=2e-5, rtol=1e-3)


CASES = {
    "as the paper's code": {},
    "connected penalties over several epochs": {"penalties": "connected", "epochs": 3},
    "a sum of norms": {"penalties": "connected", "epochs": 3, "squared": False, "proximal": 0.1},
    "no penalties and three layers": {"penalties": "none", "layers": 3},
    "one layer": {"layers": 1},
    "sparse features": {"dataset": sparse_graph()},
    "moments that start anew": {"keep": False},
    "masks at their own rate that shrink": {"lr": 0.02, "shrink": 5.0, "threshold": 0.0},
    "masks that shrink in Adam's metric": {
        "dataset": sparse_graph(),
        "shrink": 1e-3,
        "adaptive": True,
        "threshold": 0.0,
    },
    "drawn masks": {"init": "xavier"},
    "gradient descent": {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_at_once_is_one_by_one(options):
    served = client(**options)
    assert served.reason is None
    assert_same(rounds(served, at_once=True), rounds(client(**options), at_once=False))


def test_clients_that_missed_rounds_go_on_with_their_own_moments():
    cohorts = [(0, 1, 2, 3), (0, 2), (0, 1, 2, 3), (1, 2, 3)]
    assert_same(
        rounds(client(), at_once=True, cohorts=cohorts),
        rounds(client(), at_once=False, cohorts=cohorts),
    )


def test_a_state_goes_from_one_way_to_the_other():
    served = client()
    start = dict(initial_model(served.setting).state_dict())

    def second(first_at_once):
        states = [ClientState() for _ in range(4)]
        for number, at_once in ((1, first_at_once), (2, not first_at_once)):
            downs = [down(served, number, c, start) for c in range(4)]
            if at_once:
                uploads = served.train_cohort(downs, states)
            else:
                uploads = [served.train(*pair) for pair in zip(downs, states, strict=True)]
        return [uploads], states

    assert_same(second(first_at_once=True), second(first_at_once=False))


def test_states_and_downloads_are_not_written_to():
    served = client(epochs=2)
    start = dict(initial_model(served.setting).state_dict())
    states = [ClientState() for _ in range(4)]
    served.train_cohort([down(served, 1, c, start) for c in range(4)], states)
    before = [{g: {k: t.clone() for k, t in s[g].items()} for g in s} for s in states]
    held = [{g: dict(s[g]) for g in s} for s in states]
    arrays = {name: tensor.clone() for name, tensor in start.items()}
    served.train_cohort([down(served, 2, c, start) for c in range(4)], states)
    assert all(torch.equal(start[n], arrays[n]) for n in start)
    for old, copy in zip(held, before, strict=True):
        assert all(torch.equal(old[g][k], copy[g][k]) for g in old for k in old[g])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backbone": GAT}, "GCN"),
        ({"clip": 1.0}, "norm"),
        ({"optimizer": partial(torch.optim.LBFGS, lr=0.1)}, "elements"),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(options, why):
    served = client(**options)
    assert why in served.reason
    if "optimizer" not in options:
        assert_same(rounds(served, at_once=True), rounds(client(**options), at_once=False))


@pytest.mark.parametrize(("cohort", "calls"), [("auto", [4] * 4), (2, [2] * 8), ("off", [])])
def test_the_engine_asks_for_blocks(cohort, calls, monkeypatch):
    served = client()
    seen = []
    at_once = FedPub.train_cohort

    def counted(self, downs, states):
        seen.append(len(downs))
        return at_once(self, downs, states)

    monkeypatch.setattr(FedPub, "train_cohort", counted)
    grid = LocalGrid(client_app_of(lambda _: served), 4, raise_errors=True, cohort=cohort)
    samplers = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
    loop = Loop(
        strategy=Server(**samplers), grid=grid, roster=grid.roster, seed=0,
        clock=served.setting.clock,
        evaluation=served.setting.evaluation,
    )  # fmt: skip
    logs = list(loop.run(to_record(dict(initial_model(served.setting).state_dict()))))
    assert seen == calls
    assert [len(log.evaluations) for log, _ in logs[1:]] == [0, 4, 0, 4]
    assert grid.store.ids() == [0, 1, 2, 3]
