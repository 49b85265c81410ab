import math

import pytest
import torch

from fedsim.gate import (
    Gate,
    evaluation_fault,
    is_finite,
    is_idle,
    loss_fault,
    squared_norm,
    weight_fault,
)
from fedsim.wire import Upload

MODEL = {"w": torch.zeros(2, 3), "n": torch.tensor(0)}


def upload(num_examples=1, metrics=None, **params):
    return Upload(
        client_id=0, num_examples=num_examples, records={"arrays": params}, metrics=metrics or {}
    )


@pytest.mark.parametrize("weight", [-1, 0, math.nan, math.inf, 1e10])
def test_weights_that_cannot_be_are_refused(weight):
    fault = weight_fault(upload(weight), 1e9)
    assert fault.kind == "weight"
    assert str(weight) in fault.reason


def test_a_weight_within_bounds_passes():
    assert weight_fault(upload(1e9), 1e9) is None
    assert weight_fault(upload(0.5), 1e9) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, [1.0]])
def test_a_loss_that_is_no_number_is_refused(loss):
    assert loss_fault(upload(metrics={"loss": loss})).kind == "metrics"


def test_a_reply_without_a_loss_passes():
    assert loss_fault(upload()) is None


def test_norms_leave_integers_out():
    assert squared_norm({"w": torch.tensor([3.0, 4.0]), "n": torch.tensor([7])}) == 25.0


def test_large_but_finite_values_are_finite():
    large = {"w": torch.full((1000,), 3e38)}
    assert squared_norm(large) == math.inf
    assert is_finite(large)
    assert not is_finite({"w": torch.tensor([1.0, -math.inf])})


def test_an_idle_client_says_so():
    assert is_idle(Upload(client_id=0, num_examples=0, records={}))
    assert not is_idle(upload(0, **MODEL))


TESTS = {"accuracy": [0.5, 0.25], "loss": [1.0, math.nan], "examples": [4.0, 0.0]}


def test_lists_over_experiences_pass():
    assert evaluation_fault(upload(4, TESTS)) is None
    assert evaluation_fault(upload(4)) is None  # a Flower client's own numbers


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 0.5},
        {"accuracy": [0.5]},
        {"examples": [4.0, -1.0]},
        {"examples": [4.0, math.nan]},
    ],
)
def test_tests_that_make_no_sense_are_refused(change):
    assert evaluation_fault(upload(4, {**TESTS, **change})).kind == "evaluation"
    assert evaluation_fault(upload(math.nan, TESTS)).kind == "evaluation"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "ignore"}, "reject, abort or clip"),
        ({"policy": "clip", "max_norm": None}, r"needs gate\.max_norm"),
        ({"max_norm": 0}, "above 0"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_examples": math.nan}, "max_examples"),
        ({"min_results": -1}, "0 or more"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Gate(**options)
