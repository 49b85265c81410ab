"""The evaluation points: by hand, and the same for every method that can be compared."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from clients.ewc import EWC
from clients.fedproto import FedProto
from clients.icarl import ICaRL
from clients.replay import Replay
from clients.sgd import SGD
from fedsim import fieldtest
from fedsim.backbones.vision import Flatten
from fedsim.fieldtest import FieldTest, costs
from fedsim.metrics import mean_numbers
from fedsim.sampling import Uniform
from fedsim.simulation import Simulation
from strategies.fedproto import FedProto as FedProtoServer
from strategies.icarl import ICaRL as ICaRLServer
from strategies.icarl import Merging
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_training
from tests.strategies.test_prototypes import setting

SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0, fixed=True)}
ONES = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
POINTS = {"before/base", "before/field", "before/mission", "before/mean"} | {
    "before/mission_among_mission", "after/base", "after/field", "after/field_among_field",
}  # fmt: skip
COSTS = {"update_s_per_class", "upload_bytes_per_class", "download_bytes_per_class"}


def always(label, then, num_classes=12):
    """Scores by which a class is preferred, and another one where that is no candidate."""

    def scorer(rows):
        scores = torch.zeros(len(rows), num_classes)
        scores[:, then] = 1.0
        scores[:, label] = 2.0
        return scores

    return scorer


def test_sets_and_candidates_by_hand():
    """Three base classes; 4 and 7 are known, 7 and 9 are the mission; everything is called 7."""
    test = FieldTest(setting().scenario)
    known, mission = torch.tensor([0, 1, 2, 4, 7]), torch.tensor([7, 9])
    before = test.before(always(7, 4), known, mission)
    assert before == {
        "before/base": 0.0,
        "before/field": 0.0,
        "before/mission": 0.5,
        "before/mean": pytest.approx(0.5 / 3),
        "before/mission_among_mission": 0.5,
    }
    after = test.after(always(0, 4), known)
    assert after == {
        "after/base": pytest.approx(1 / 3),
        "after/field": 0.0,
        "after/field_among_field": 0.5,  # 0 is no candidate, so everything is called 4
        "known_classes": 5,
    }


def test_what_has_no_test_data_is_not_a_number_and_no_part_of_the_mean():
    test = FieldTest(setting(base_classes=0).scenario)
    values = test.before(always(7, 4), torch.empty(0, dtype=torch.int64), torch.tensor([7]))
    assert math.isnan(values["before/base"])
    assert math.isnan(values["before/field"])
    assert values["before/mean"] == values["before/mission"] == 1.0


def test_known_are_the_classes_of_the_experiences_so_far():
    scenario = setting().scenario
    test = FieldTest(scenario)
    assert test.known(0).tolist() == []
    assert test.known(1).tolist() == [0, 1, 2]
    assert test.known(2).tolist() == sorted({0, 1, 2, *scenario.classes(1)})


def test_costs_are_per_class_of_the_data():
    down = {"arrays": {"w": torch.zeros(6)}}
    up = {"arrays": {"w": torch.zeros(6)}, "more": {"n": torch.zeros(2, dtype=torch.int64)}}
    assert costs(down, up, 3.0, 2) == {
        "update_s_per_class": 1.5,
        "download_bytes_per_class": 12.0,
        "upload_bytes_per_class": 20.0,
    }


def test_means_are_over_those_who_measured():
    parts = [{"a": 1.0, "loss": 2.0, "list": [1.0]}, {"a": math.nan}, {"a": 2, "b": 4}]
    assert mean_numbers(parts) == {"a": 1.5, "b": 4.0}


METHODS = {
    "fine-tuning": (SGD, lambda: FedAvg(**ONES), {}),
    "replay": (Replay, lambda: FedAvg(**ONES), {"memory": 30, "replay_batch": 8}),
    "ewc": (EWC, lambda: FedAvg(**ONES), {"penalty": 1.0}),
    "fedproto": (FedProto, lambda: FedProtoServer(**SAMPLERS), {"strength": 1.0}),
    "icarl": (
        ICaRL,
        lambda: ICaRLServer(
            **SAMPLERS,
            budget=40,
            merging=Merging(backbone=Flatten, head=nn.Linear, training=small_training(epochs=1)),
            seed=0,
        ),
        {"exemplars": 3},
    ),
}


def logs_of(kind, server, chosen, **options):
    client = small_client(chosen, kind=kind, training=small_training(epochs=3), **options)
    simulation = Simulation(setting=chosen, client=client, strategy=server)
    loop = small_loop(server, client, evaluator=simulation.evaluate)
    return [log for log, _ in loop.run(first_arrays(chosen))]


@pytest.mark.parametrize("name", METHODS)
def test_every_comparator_is_tested_at_the_same_points(name):
    kind, server, options = METHODS[name]
    chosen = setting(evaluation_points=True, mission={"replacement": True})
    measures = logs_of(kind, server(), chosen, **options)[-1].measures
    assert measures.keys() >= POINTS | COSTS
    assert all(0.0 <= measures[point] <= 1.0 for point in POINTS)
    assert measures["before/mission_among_mission"] >= measures["before/mission"] > 0.3
    assert measures["after/field_among_field"] >= measures["after/field"]
    assert measures["upload_bytes_per_class"] >= 4 * (4 + 1) * 12 / 3  # a linear head of 12 classes


def test_nothing_is_measured_unless_asked_and_measuring_changes_nothing():
    runs = [
        logs_of(SGD, FedAvg(**ONES), setting(evaluation_points=asked)) for asked in (False, True)
    ]
    assert not runs[0][-1].measures
    accuracies = [[log.server.metrics["accuracy"] for log in logs] for logs in runs]
    np.testing.assert_equal(*accuracies)


def test_the_copy_holds_the_clients_own_weights_and_not_the_download(monkeypatch):
    """What is tested before the merge is what is uploaded."""
    chosen = setting(evaluation_points=True)
    client = small_client(chosen, training=small_training(epochs=3))
    seen = []

    def spy(client, down, state):
        seen.append({name: tensor.clone() for name, tensor in client.tensors().items()})
        return original(client, down, state)

    original = fieldtest._scorer
    monkeypatch.setattr(fieldtest, "_scorer", spy)
    client.upload = partial(_marked, client.upload)
    [log, *_] = [log for log, _ in small_loop(FedAvg(**ONES), client).run(first_arrays(chosen))][1:]
    assert log.cohort
    assert all(torch.equal(t, torch.full_like(t, 3.0)) for t in seen[0].values())


def _marked(upload, *arguments):
    """The upload with all weights set to three."""
    records = upload(*arguments)
    return {**records, "arrays": {n: torch.full_like(t, 3.0) for n, t in records["arrays"].items()}}
