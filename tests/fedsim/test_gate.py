import math

import pytest
import torch

from fedsim.gate import fault, is_finite, is_idle
from fedsim.wire import Upload

MODEL = {"w": torch.zeros(2, 3), "n": torch.tensor(0)}


def upload(num_examples=1, **params):
    return Upload(client_id=0, num_examples=num_examples, records={"arrays": params})


def test_a_good_update_passes():
    assert fault(upload(w=torch.ones(2, 3), n=torch.tensor(3)), MODEL) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(value):
    w = torch.ones(2, 3)
    w[1, 2] = value
    assert "NaN or infinity" in fault(upload(w=w, n=torch.tensor(0)), MODEL)


def test_large_but_finite_values_pass():
    assert is_finite({"w": torch.full((1000,), 3e38)})


def test_other_shapes_and_names_are_refused_by_name():
    assert "'w': expected shape (2, 3), got (3, 2)" in fault(
        upload(w=torch.ones(3, 2), n=torch.tensor(0)), MODEL
    )
    assert "n" in fault(upload(w=torch.ones(2, 3)), MODEL)
    assert "extra" in fault(upload(**MODEL, extra=torch.ones(1)), MODEL)


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_weights_that_cannot_be_are_refused(weight):
    assert "finite number of examples" in fault(upload(weight, **MODEL), MODEL)


def test_records_other_than_the_model_only_need_numbers():
    up = Upload(client_id=0, num_examples=1, records={"sums": {"a": torch.ones(5)}})
    assert fault(up, MODEL) is None
    up = Upload(client_id=0, num_examples=1, records={"sums": {"a": torch.tensor([math.nan])}})
    assert "sums" in fault(up, MODEL)


def test_an_idle_client_says_so():
    assert is_idle(Upload(client_id=0, num_examples=0, records={}))
    assert not is_idle(upload(0, **MODEL))
