"""Uploads that a method's server cannot use, and aggregates with and without an offender."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.serverapp import strategy as flower

from fedsim.clock import Clock
from fedsim.config import compose, resolve
from fedsim.forms import check
from fedsim.functional.packing import pack
from fedsim.main import simulate
from fedsim.roster import LocalRoster
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.dkvb import DKVB, KeyRounds
from strategies.fedproto import FedProto
from strategies.fedpub import FedPub
from strategies.icarl import ICaRL
from strategies.mean import Mean
from strategies.prototypes import Prototypes
from tests.faults.catalogue import ALL, REJECTED, SURVIVED, cases, rejections, run, struck

SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
CLOCK = Clock(num_experiences=2, rounds_per_experience=2)
TABLE = {
    "head.values": torch.zeros(6, 3),
    "head.counts": torch.zeros(6, dtype=torch.int64),
    "head.masked": torch.zeros(6, dtype=torch.bool),
    "head.keys": torch.zeros(2, 3, 4),
}


def fault(strategy, records, params, num_classes=4, **state):
    """What the gate would say of an upload in the first round."""
    strategy.bind(CLOCK, LocalRoster(4))
    strategy.num_classes = num_classes
    upload = Upload(client_id=0, num_examples=1, records=records)
    held = replace(strategy.init(params), **state)
    return check(records, strategy.expects(CLOCK.at(1), held, upload))[0]


def statistics(classes=(0, 3), width=5, counts=(1, 2), **more):
    return {
        "classes": torch.tensor(classes),
        "sums": torch.zeros(len(classes), width),
        "counts": torch.tensor(counts, dtype=torch.int32),
        **more,
    }


KNOWN = {
    "classes": torch.tensor([0]),
    "sums": torch.zeros(1, 5, dtype=torch.float64),
    "counts": torch.tensor([1]),
    "changed": torch.tensor([1]),
}


def mission(number=1, **changes):
    return {"statistics": statistics(mission=torch.tensor(number), **changes)}


def rows(indices=(0, 5), width=3, counts=(1, 1)):
    return {
        "rows": {
            "indices": torch.tensor(indices),
            "deltas": torch.zeros(len(indices), width),
            "counts": torch.tensor(counts),
        }
    }


W = {"w": torch.zeros(3, 3)}
BITS, VALUES = pack(torch.ones(3, 3), torch.eye(3).bool())


def packed(bits=BITS, values=VALUES):
    return {
        "dense": {}, "bits": {"w": bits}, "values": {"w": values},
        "embedding": {"mean": torch.zeros(4)},
    }  # fmt: skip


PROTOTYPES = partial(fault, Prototypes(**SAMPLERS), params=W)
ROWS = partial(
    fault, DKVB(**SAMPLERS, keys=KeyRounds(), unlearning=None, seed=0), params=TABLE
)  # fmt: skip
PUB = partial(fault, FedPub(**SAMPLERS), params=W)
PROTO = partial(fault, FedProto(**SAMPLERS), params=W)
EXEMPLARS = partial(
    fault, ICaRL(**SAMPLERS, budget=4, merging=None, seed=0), params=W
)  # fmt: skip

FORMS = {
    "prototypes: a class beyond the last": (
        REJECTED, lambda: PROTOTYPES(mission(classes=(0, 4))), "range"),
    "prototypes: negative counts": (
        REJECTED, lambda: PROTOTYPES(mission(counts=(1, -2))), "range"),
    "prototypes: another width than the table": (
        REJECTED, lambda: PROTOTYPES(mission(width=7), **KNOWN), "shape"),
    "prototypes: a mission that is not": (
        REJECTED, lambda: PROTOTYPES(mission(number=9)), "range"),
    "prototypes: a model instead of sums": (
        REJECTED, lambda: PROTOTYPES({"arrays": W}), "records"),
    "DKVB: a row beyond the table": (
        REJECTED, lambda: ROWS(rows(indices=(0, 6))), "range"),
    "DKVB: a negative row": (
        REJECTED, lambda: ROWS(rows(indices=(-1, 0))), "range"),
    "DKVB: negative counts": (
        REJECTED, lambda: ROWS(rows(counts=(1, -1))), "range"),
    "DKVB: values of another width": (
        REJECTED, lambda: ROWS(rows(width=4)), "shape"),
    "FED-PUB: no embedding": (
        REJECTED, lambda: PUB({"arrays": W}), "records"),
    "FED-PUB: bits of another size": (
        REJECTED, lambda: PUB(packed(bits=BITS[:1])), "shape"),
    "FED-PUB: more values than bits": (
        REJECTED, lambda: PUB(packed(values=torch.ones(5))), "shape"),
    "FedProto: sums without counts": (
        REJECTED, lambda: PROTO({"arrays": W, "statistics": {"sums": torch.zeros(1, 2)}}), "names"),
    "iCaRL: labels beyond the last class": (
        REJECTED,
        lambda: EXEMPLARS({
            "arrays": W,
            "exemplars": {"inputs": torch.zeros(1, 6), "labels": torch.tensor([4])},
        }),
        "range"),
}  # fmt: skip


@cases(FORMS)
def test_form(case):
    assert case[1]().kind == case[2]


def test_honest_uploads_fit_the_forms():
    assert PROTOTYPES(mission()) is None
    assert PROTOTYPES(mission(), **KNOWN) is None
    assert PROTOTYPES({**mission(), "moments": {"outer": torch.zeros(5, 5)}}) is None
    assert ROWS(rows()) is None
    assert PUB({"arrays": W, "embedding": {"mean": torch.zeros(4)}}) is None
    assert PUB(packed()) is None
    assert PROTO({"arrays": W, "statistics": statistics()}) is None
    exemplars = {"inputs": torch.zeros(2, 1, 8, 8), "labels": torch.tensor([0, 3])}
    assert EXEMPLARS({"arrays": W, "exemplars": exemplars}) is None


SMALL = ["clock.rounds_per_experience=2", "progress=false", "server_evaluation=false"]
TOY = ["dataset=toy", "dataset.train_examples=80", "num_clients=4", "training.epochs=1", *SMALL]
GRAPH = ["dataset=karate_club", "scenario=graph", "partition=louvain", "num_clients=3"]
METHODS = {
    "FedAvg": (SURVIVED, [*TOY, "client=sgd"]),
    "FedAdam": (SURVIVED, [*TOY, "client=sgd", "strategy=fedadam"]),
    "weighted mean": (SURVIVED, [*TOY, "client=sgd", "strategy=mean"]),
    "FED-PUB": (
        SURVIVED,
        [*GRAPH, "backbone=gcn", "client=fedpub", "strategy=fedpub", "optimizer=adam", *SMALL],
    ),
    "prototypes": (
        SURVIVED,
        [*TOY, "client=prototypes", "strategy=prototypes", "optimizer=sgd"],
    ),
    "DKVB": (SURVIVED, ["experiment=dkvb_toy", "num_clients=4", "training.epochs=2", *SMALL]),
}


@cases(METHODS)
def test_as_without_the_offender(case, tmp_path):
    """Rejected rubbish leaves the same bits as a client that was never reached."""

    def summary(*faults):
        node = resolve(compose([*case[1], *faults]))
        return simulate(node, tmp_path / faults[0], started=0.0)

    poisoned, absent = summary("faults.nan=[1]"), summary("faults.dropout=[1]")
    assert poisoned["rejected/not_finite"] == poisoned["rounds"] == absent["rejected/no_reply"]
    assert poisoned["digest"] == absent["digest"]


class TestOfFederatedMeans:
    """Flower's strategies and our own, with one client that sends other shapes."""

    @pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg"])
    def test_flowers_strategies_go_on(self, name):
        logs, digest = run(getattr(flower, name)(**ALL), faults=struck(wrong_shape=[1]))
        assert rejections(logs) == [("shape", 1)] * 3
        _, absent = run(getattr(flower, name)(**ALL), faults=struck(dropout=[1]))
        assert digest == absent

    def test_our_mean_goes_on(self):
        _, digest = run(Mean(**SAMPLERS), faults=struck(wrong_shape=[1]))
        assert digest == run(Mean(**SAMPLERS), faults=struck(dropout=[1]))[1]
