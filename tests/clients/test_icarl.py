"""Federated iCaRL: both sides."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from clients.icarl import ICaRL as Client
from fedsim.backbones.vision import Flatten
from fedsim.sampling import Uniform
from strategies.icarl import ICaRL, Merging, within_budget
from tests.fedsim.builders import (
    first_arrays,
    small_client,
    small_loop,
    small_setting,
    small_training,
)


def strategy(epochs=0, budget=12):
    return ICaRL(
        sampler=Uniform(seed=0),
        evaluation_sampler=Uniform(seed=0, fixed=True),
        budget=budget,
        merging=Merging(backbone=Flatten, head=nn.Linear, training=small_training(epochs=epochs)),
        seed=0,
    )


def run(server, **options):
    client = small_client(small_setting(), kind=Client, **{"exemplars": 2, **options})
    return [log for log, _ in small_loop(server, client).run(first_arrays(client.setting))]


def test_the_budget_is_shared_by_classes_and_owners_take_turns():
    labels = torch.tensor([7, 7, 7, 7, 7, 2])
    owners = torch.tensor([0, 0, 0, 1, 1, 1])
    assert within_budget(labels, owners, 6).tolist() == [5, 0, 3, 1]
    assert within_budget(labels, owners, 1).tolist() == [5, 0]


def test_the_memory_holds_every_class_within_the_budget():
    server = strategy()
    logs = run(server)
    labels, counts = torch.unique(server.state.labels, return_counts=True)
    assert labels.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [3, 3, 3, 3]
    assert logs[-1].upload_bytes["exemplars"] > 0
    assert server.measures(server.state)["exemplar_bytes"] == 12 * 6 * 4


def test_old_classes_are_not_forgotten():
    logs = run(strategy())
    accuracy = logs[-1].evaluations[0].metrics["accuracy"]
    assert min(accuracy) > 0.8


def test_merging_trains_the_average_on_the_exemplars():
    average, trained = strategy(), strategy(epochs=3)
    run(average)
    run(trained)
    weights = [server.state.arrays["head.weight"] for server in (average, trained)]
    assert not torch.allclose(*weights)
    again = strategy(epochs=3)
    run(again)
    assert_close(again.state.arrays["head.weight"], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(small_client, kind=Client, exemplars=0), "exemplars must be"),
        (partial(small_client, kind=Client, exemplars=1, temperature=0.0), "temperature must be"),
        (partial(strategy, budget=0), "budget must be"),
    ],
)
def test_senseless_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
