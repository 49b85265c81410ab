"""When clients are trained at once, and what is declined with which reason."""

import logging
from functools import partial

import pytest
import torch

from clients.sgd import SGD
from fedsim.backbones.vision import MLP
from fedsim.cohort_plan import MIN_BLOCK, Cohort, Workload
from fedsim.engine import LocalEngine
from fedsim.state import ClientState
from tests.fedsim.builders import small_setting, small_training
from tests.fedsim.test_client import down
from tests.fedsim.test_cohort import CLIENTS, reason, rounds


def plan(size="auto", kind=SGD, *, backbone=None, **training):
    options = {"backbone": backbone} if backbone else {}
    client = kind(
        small_setting(num_clients=CLIENTS, **options), training=small_training(**training)
    )
    return Cohort(client, size), client


def test_small_models_are_trained_at_once_and_large_ones_are_not():
    cohort, client = plan()
    assert cohort.size(down(client), ClientState()) >= MIN_BLOCK
    cohort, client = plan(backbone=partial(MLP, hidden=[400, 400]))
    assert cohort.size(down(client), ClientState()) == 1
    assert "long enough" in cohort.reason


def test_a_number_is_taken_at_its_word():
    cohort, client = plan(5, backbone=partial(MLP, hidden=[400, 400]))
    assert cohort.size(down(client), ClientState()) == 5


def test_the_rule_by_value():
    small = Workload(products=3e6, convolves=True, weights=29_066, inputs=7840, held=1e5)
    assert small.is_small
    assert not Workload(products=3e7, convolves=True, weights=100, inputs=1, held=1).is_small
    assert not Workload(products=1, convolves=False, weights=200_000, inputs=1, held=1).is_small
    assert small.values == 1e5 + 7840 + 4 * 29_066


class Fits(SGD):
    def fit(self, batches, down, state):
        return super().fit(batches, down, state)


class Numbered(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + down.client_id)


class Counting(SGD):
    def load(self, model, down, state):
        super().load(model, down, state)
        state.set_count("seen", down.client_id)

    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + state.count("seen"))


class Ragged(SGD):
    def load(self, model, down, state):
        super().load(model, down, state)
        state["own"] = {"w": torch.ones(1 + down.client_id)}

    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * state["own"]["w"].sum()


class Hoarder(SGD):
    def load(self, model, down, state):
        super().load(model, down, state)
        self.last = down.client_id

    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + self.last)


class Secretive(SGD):
    """Keeps who it serves where no attribute changes: only the check can see it."""

    def __init__(self, setting, *, training):
        super().__init__(setting, training=training)
        self.seen = []

    def load(self, model, down, state):
        super().load(model, down, state)
        self.seen.append(down.client_id)

    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + self.seen[-1])


class Noisy(SGD):
    def loss(self, model, batch, down, state):
        return super().loss(model, batch, down, state) * (1 + torch.rand(()))


DECLINED = {
    Fits: "overrides fit",
    Numbered: "client's number",
    Counting: "counter 'seen'",
    Ragged: "'own' differs",
    Hoarder: "keeps last on itself",
    Secretive: "disagree on",
    Noisy: "random",
}


@pytest.mark.parametrize("kind", DECLINED, ids=lambda kind: kind.__name__)
def test_what_cannot_be_stacked_is_declined_and_trained_one_by_one(kind, caplog):
    def client():
        return kind(small_setting(num_clients=CLIENTS), training=small_training())

    caplog.set_level(logging.INFO)
    _, alone, _ = rounds(client(), "off")
    _, together, app = rounds(client(), "auto")
    assert DECLINED[kind] in reason(app)
    assert sum("one by one" in record.message for record in caplog.records) == 1
    for name, array in alone.items():
        assert torch.equal(together[name].tensor, array.tensor), name


def test_moments_that_stay_with_the_client_are_declined():
    cohort, client = plan(4, keep_optimizer=True)
    assert cohort.size(down(client), ClientState()) == 1
    assert "keep_optimizer" in cohort.reason


def test_optimisers_that_mix_elements_are_declined():
    cohort, client = plan(4, optimizer=partial(torch.optim.LBFGS, lr=0.1))
    assert cohort.size(down(client), ClientState()) == 1
    assert "LBFGS" in cohort.reason


class Broken(SGD):
    def upload(self, model, shard, down, state):
        if down.client_id == 2:
            raise RuntimeError("out of paper")
        return super().upload(model, shard, down, state)


def test_an_error_names_its_client():
    client = Broken(small_setting(num_clients=CLIENTS), training=small_training())
    with pytest.raises(RuntimeError, match="out of paper") as caught:
        rounds(client, 4)
    assert any("client 2" in note for note in caught.value.__notes__)


def test_a_bare_off_of_yaml_is_understood():
    assert LocalEngine(cohort=False).cohort == "off"


@pytest.mark.parametrize("wrong", ["fast", 1, 0, True, 2.5])
def test_the_engine_refuses_other_sizes(wrong):
    with pytest.raises(ValueError, match=r"engine\.cohort"):
        LocalEngine(cohort=wrong)
