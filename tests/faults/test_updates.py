"""Clients that send something else than they should, or nothing."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import strategy as flower

from clients.sgd import SGD
from fedsim.checks import VoidRoundError
from fedsim.gate import Gate
from fedsim.grid import LocalGrid
from tests.faults.catalogue import (
    ALL,
    ENDED,
    OFFENDER,
    REJECTED,
    SURVIVED,
    case,
    cases,
    rejections,
    run,
    struck,
)

STRIKES = {
    "fail": (REJECTED, "error"),
    "hang": (REJECTED, "no_reply"),
    "straggle": (REJECTED, "late"),
    "dropout": (REJECTED, "no_reply"),
    "nan": (REJECTED, "not_finite"),
    "inf": (REJECTED, "not_finite"),
    "huge": (REJECTED, "norm"),
    "wrong_shape": (REJECTED, "shape"),
    "wrong_dtype": (REJECTED, "dtype"),
    "wrong_keys": (REJECTED, "names"),
    "empty": (REJECTED, "records"),
    "stale": (REJECTED, "stale"),
    "negative": (REJECTED, "weight"),
}


class Absentee(SGD):
    """The offender has no data."""

    def train(self, down, state):
        upload = super().train(down, state)
        if down.client_id == OFFENDER:
            return replace(upload, num_examples=0, records={}, metrics={})
        return upload


@pytest.fixture(scope="module")
def without():
    """The digest of the run in which the offender takes no part."""
    return run(kind=Absentee)[1]


@cases(STRIKES)
def test_strike(case, request, without):
    _, expected = case
    kind = request.node.callspec.id
    logs, digest = run(faults=struck(**{kind: [OFFENDER]}, timeout=10.0))
    assert rejections(logs) == [(expected, OFFENDER)] * 3
    assert digest == without


@case(REJECTED)
def test_duplicate():
    logs, digest = run(faults=struck(duplicate=[OFFENDER]))
    assert rejections(logs) == [("duplicate", OFFENDER)] * 3
    assert [len(log.cohort) for log in logs[1:]] == [4, 4, 4]
    assert digest == run()[1]  # the first of the two counts


@case(SURVIVED)
def test_a_straggler_in_time():
    logs, digest = run(faults=struck(straggle=[OFFENDER], timeout=60.0))
    assert not rejections(logs)
    assert digest == run()[1]
    assert [log.seconds["waiting"] for log in logs[1:]] == [30.0] * 3


@case(SURVIVED)
def test_a_huge_update_is_clipped():
    logs, digest = run(faults=struck(huge=[OFFENDER]), gate=Gate(policy="clip", max_norm=1.0))
    assert not rejections(logs)
    assert [log.measures["clipped_updates"] for log in logs[1:]] == [1, 1, 1]
    assert all(math.isfinite(log.train_loss) for log in logs[1:])
    assert digest != run()[1]


@case(SURVIVED)
def test_sign_flip_under_krum():
    """The attacker is never the one that is chosen; without it Krum chooses the same."""
    attacked = run(flower.Krum(**ALL, num_malicious_nodes=1), faults=struck(sign_flip=[3], scale=5))
    assert not rejections(attacked[0])
    averaged = run(faults=struck(sign_flip=[3], scale=5.0))
    assert attacked[0][-1].train_loss < averaged[0][-1].train_loss


@case(REJECTED)
def test_noise_above_the_bound(without):
    logs, digest = run(faults=struck(noise=[OFFENDER], scale=10.0), gate=Gate(max_norm=5.0))
    assert rejections(logs) == [("norm", OFFENDER)] * 3
    assert digest == without


@case(SURVIVED)
def test_faults_that_strike_nobody_change_nothing():
    assert run(faults=struck())[1] == run()[1]


class Offender(SGD):
    """One client's upload is changed by :meth:`spoil`."""

    def train(self, down, state):
        upload = super().train(down, state)
        return self.spoil(upload) if down.client_id == OFFENDER else upload


class Greedy(Offender):
    def spoil(self, upload):
        return replace(upload, num_examples=10**12)


class Talkative(Offender):
    def spoil(self, upload):
        return replace(upload, records={**upload.records, "more": {"x": torch.ones(1)}})


class Fat(Offender):
    def spoil(self, upload):
        return replace(upload, records={**upload.records, "more": {"x": torch.ones(10_000)}})


class Chatty(Offender):
    def spoil(self, upload):
        return replace(upload, metrics={**upload.metrics, "mood": 1.0})


class Lossless(Offender):
    def spoil(self, upload):
        return replace(upload, metrics={**upload.metrics, "loss": math.nan})


class Weightless(Offender):
    def spoil(self, upload):
        return replace(upload, num_examples=0)


UPLOADS = {
    "absurd weight": (REJECTED, Greedy, "weight"),
    "no weight": (REJECTED, Weightless, "weight"),
    "unknown record": (REJECTED, Talkative, "records"),
    "too many bytes": (REJECTED, Fat, "size"),
    "other metrics than the rest": (REJECTED, Chatty, "metrics"),
    "loss is NaN": (REJECTED, Lossless, "metrics"),
}


@cases(UPLOADS)
def test_upload(case, without):
    _, kind, expected = case
    logs, digest = run(kind=kind, gate=Gate(max_bytes=5_000))
    assert rejections(logs) == [(expected, OFFENDER)] * 3
    assert digest == without


class Tampered(LocalGrid):
    """Replies of the offender are changed on their way."""

    def stream(self, messages, *, timeout=None):
        for reply in super().stream(messages, timeout=timeout):
            sender = self.roster.client(reply.metadata.src_node_id)
            if reply.metadata.message_type == "train" and sender == OFFENDER:
                self.tamper(reply)
            yield reply

    def tamper(self, reply):
        raise NotImplementedError


def npy(descr, shape, payload):
    """The bytes of an array, true or not."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + payload


def grid_with(data, stype="numpy.ndarray"):
    class Foreign(Tampered):
        def tamper(self, reply):
            array = Array(dtype="float32", shape=(1,), stype=stype, data=data)
            reply.content["arrays"] = ArrayRecord({"head.weight": array})

    return Foreign


def evil():
    """A pickled object that would leave a mark if anybody unpickled it."""
    import pickle

    class Evil:
        def __reduce__(self):
            return exec, ("import builtins; builtins.fedsim_was_here = True",)

    return pickle.dumps(Evil())


PAYLOADS = {
    "pickled objects": (REJECTED, lambda: npy("|O", "(1,)", evil())),
    "a bare pickle": (REJECTED, evil),
    "a header that promises terabytes": (REJECTED, lambda: npy("<f4", "(1000000000000,)", b"0000")),
    "a header that promises less": (REJECTED, lambda: npy("<f4", "(1,)", bytes(400))),
    "a field of code": (REJECTED, lambda: npy("<f4', __import__('os').getcwd(): '", "()", b"")),
    "no array": (REJECTED, lambda: b"garbage"),
}


@cases(PAYLOADS)
def test_payload(case, without):
    import builtins

    logs, digest = run(grid=grid_with(case[1]()))
    assert rejections(logs) == [("unreadable", OFFENDER)] * 3
    assert digest == without
    assert not hasattr(builtins, "fedsim_was_here")


@case(REJECTED)
def test_an_array_of_an_unknown_kind(without):
    logs, digest = run(grid=grid_with(npy("<f4", "(1,)", bytes(4)), stype="pickle"))
    assert rejections(logs) == [("unreadable", OFFENDER)] * 3
    assert digest == without


@case(SURVIVED)
def test_a_malicious_configuration_record():
    """What a reply's configuration says, other than the round, is never read."""
    import builtins

    class Foreign(Tampered):
        def tamper(self, reply):
            reply.content["more"] = ConfigRecord({"overrides": "seed=1", "code": evil()})

    logs, digest = run(grid=Foreign)
    assert not rejections(logs)
    assert digest == run()[1]
    assert not hasattr(builtins, "fedsim_was_here")


@case(REJECTED)
def test_a_reply_nobody_asked_for():
    class Crowded(LocalGrid):
        def stream(self, messages, *, timeout=None):
            for reply in super().stream(messages, timeout=timeout):
                yield reply
                if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 5:
                    forged = Message(reply.content, dst_node_id=1, message_type="train")
                    forged.metadata.__dict__["_src_node_id"] = 999
                    yield forged

    logs, digest = run(grid=Crowded)
    assert {kind for kind, _ in rejections(logs)} == {"unasked"}
    assert digest == run()[1]


class Unevaluated(SGD):
    """The offender's tests make no sense."""

    def evaluate(self, down, state):
        upload = super().evaluate(down, state)
        if down.client_id == OFFENDER:
            return replace(upload, metrics={**upload.metrics, "accuracy": [0.5] * 7})
        return upload


@case(REJECTED)
def test_tests_that_make_no_sense():
    logs, digest = run(kind=Unevaluated)
    assert rejections(logs) == [("evaluation", OFFENDER)]
    assert [upload.client_id for upload in logs[-1].evaluations] == [0, 2, 3]
    assert digest == run()[1]


@case(ENDED)
def test_everybody_sends_nan():
    with pytest.raises(VoidRoundError, match=r"0 of 4 clients .* rejected: 4 not_finite"):
        run(faults=struck(nan=1.0))


@case(ENDED)
def test_fewer_than_the_minimum():
    with pytest.raises(VoidRoundError, match=r"3 of 4 .* gate\.min_results is 4; .* 1 no_reply"):
        run(faults=struck(dropout=[OFFENDER]), gate=Gate(min_results=4))
    logs, _ = run(faults=struck(dropout=[OFFENDER]), gate=Gate(min_results=3))
    assert len(logs) == 4


@case(ENDED)
def test_the_first_bad_update_aborts():
    with pytest.raises(VoidRoundError, match=r"round 1, client 1: .*NaN.*gate.policy=abort"):
        run(faults=struck(nan=[OFFENDER]), gate=Gate(policy="abort"))


@case(SURVIVED)
def test_faults_strike_clients_of_a_block_one_by_one():
    kinds = {"fail": [0], "nan": [1], "empty": [2]}
    logs, _ = run(faults=struck(**kinds), grid=partial(LocalGrid, cohort=4))
    expected = [("error", 0), ("not_finite", 1), ("records", 2)]
    assert rejections(logs) == expected * 3
    assert [log.cohort for log in logs[1:]] == [[3]] * 3
