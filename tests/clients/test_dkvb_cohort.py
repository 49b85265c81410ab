"""Values of several clients trained in one bag are those of clients trained one by one."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from clients import dkvb_cohort
from clients.dkvb import DKVB
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from scenarios.task_incremental import TaskIncremental
from tests.clients.test_dkvb import LOOKUP, TRAINING, download, setting


def received():
    """Three rows that somebody else has trained."""
    values = torch.randn(3, 6, generator=generator(0, "values"))
    return {"indices": torch.tensor([1, 20, 70]), "values": values, "counts": torch.ones(3)}


def trained(client, at_once, **records):
    downs = [download(client, 2, records=records, client_id=c) for c in (0, 1)]
    states = [ClientState(), ClientState()]
    if at_once:
        return client.train_cohort(downs, states), states
    return [client.train(*pair) for pair in zip(downs, states, strict=True)], states


@pytest.mark.parametrize("clip_norm", [1.0, 0.01, None])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_deltas_and_losses_agree(monkeypatch, clip_norm, top_k, sparse):
    training = replace(TRAINING, clip_norm=clip_norm)
    chosen = setting(lookup=replace(LOOKUP, top_k=top_k), start="normal", sparse=sparse)
    want, _ = trained(DKVB(chosen, training=training), False, values=received())
    client = DKVB(chosen, training=training)
    monkeypatch.setattr(client, "train", None)  # nobody is trained alone
    got, _ = trained(client, True, values=received())
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.client_id, ours.num_examples) == (theirs.client_id, theirs.num_examples)
        assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], abs=1e-6)
        rows, wanted = ours.records["rows"], theirs.records["rows"]
        assert torch.equal(rows["indices"], wanted["indices"])
        assert torch.equal(rows["counts"], wanted["counts"])
        torch.testing.assert_close(rows["deltas"], wanted["deltas"], atol=1e-6, rtol=0)
        assert float(rows["deltas"].abs().max()) > 1e-4


def test_keys_are_received_by_everybody(monkeypatch):
    keys = {"keys": torch.randn(5, 16, 3, generator=generator(0, "other keys"))}
    chosen = setting()
    want, states = trained(DKVB(chosen, training=TRAINING), False, keys=keys)
    got, own = trained(DKVB(chosen, training=TRAINING), True, keys=keys)
    for ours, theirs, mine, his in zip(got, want, own, states, strict=True):
        assert torch.equal(ours.records["rows"]["indices"], theirs.records["rows"]["indices"])
        assert torch.equal(mine["keys"]["keys"], his["keys"]["keys"])


def test_clients_that_received_different_tables_are_trained_apart(monkeypatch):
    client = DKVB(setting(), training=TRAINING)
    alone = []
    train = client.train
    monkeypatch.setattr(client, "train", lambda d, s: alone.append(d.client_id) or train(d, s))
    downs = [
        download(client, client_id=0),
        download(client, 1, {"values": received()}, client_id=1),
    ]
    uploads = client.train_cohort(downs, [ClientState(), ClientState()])
    assert alone == [0, 1]
    assert [upload.client_id for upload in uploads] == [0, 1]


def test_rounds_that_only_count_are_done_one_by_one(monkeypatch):
    client = DKVB(setting(), training=TRAINING)
    downs = [download(client, client_id=c, phase="keys") for c in (0, 1)]
    uploads = client.train_cohort(downs, [ClientState(), ClientState()])
    assert [set(upload.records) for upload in uploads] == [{"cells"}, {"cells"}]


MOMENTUM = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.3, momentum=0.9))
DECLINED = {
    "a decoder reads": (setting(decoder="linear"), TRAINING),
    "no example fetches": (setting(), MOMENTUM),
    "depend on the task": (setting(TaskIncremental), TRAINING),
}


@pytest.mark.parametrize("words", DECLINED)
def test_what_is_not_one_bag_is_declined(words):
    chosen, training = DECLINED[words]
    client = DKVB(chosen, training=training, label_smoothing=0.0)
    assert words in dkvb_cohort.reason_against(client)
    got, _ = trained(client, True)
    want, _ = trained(DKVB(chosen, training=training, label_smoothing=0.0), False)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours.records["rows"]["deltas"], theirs.records["rows"]["deltas"])
