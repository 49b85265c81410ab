import re

import pytest
import torch

from fedsim.forms import REST, Field, Form, check, class_sums, fields_of

MODEL = {"w": torch.zeros(2, 3), "n": torch.tensor(0)}
FORM = [Form(records={"arrays": fields_of(MODEL)})]


def fault(records, forms=FORM):
    return check(records, forms)[0]


def test_tensors_like_the_models_pass():
    assert fault({"arrays": {"w": torch.ones(2, 3), "n": torch.tensor(3)}}) is None


@pytest.mark.parametrize(
    ("params", "kind", "text"),
    [
        ({"w": torch.ones(3, 2), "n": torch.tensor(0)}, "shape", r"\(2, 3\), got \(3, 2\)"),
        ({"w": torch.ones(2, 3)}, "names", "'n'"),
        ({**MODEL, "extra": torch.ones(1)}, "names", "'extra'"),
        ({"w": torch.ones(2, 3).double(), "n": torch.tensor(0)}, "dtype", "float32, got float64"),
        ({"w": torch.ones(2, 3).int(), "n": torch.tensor(0)}, "dtype", "float32, got int32"),
        ({"w": torch.ones(2, 3), "n": torch.tensor(0.0)}, "dtype", "int64, got float32"),
    ],
)
def test_what_differs_is_named(params, kind, text):
    found = fault({"arrays": params})
    assert found.kind == kind
    assert re.search(text, found.reason)


def test_records_must_be_those_expected():
    assert fault({}).reason == "record 'arrays' is missing"
    assert "unknown record 'spam'" in fault({"arrays": MODEL, "spam": {}}).reason
    optional = [Form(records={"a": {}, "b": {}}, optional=frozenset({"b"}))]
    assert fault({"a": {}}, optional) is None
    assert fault({"b": {}}, optional).kind == "records"


SUMS = [Form(records={"s": class_sums("D", 4)})]


def sums(classes, width, counts=None):
    k = len(classes)
    return {
        "s": {
            "classes": torch.tensor(classes),
            "sums": torch.zeros(k, width),
            "counts": torch.tensor(counts or [1] * k),
        }
    }


def test_sizes_named_by_capitals_are_told():
    assert check(sums([0, 3], 5), SUMS) == (None, {"D": 5})


def test_sizes_named_by_small_letters_must_agree():
    wrong = sums([0, 3], 5)
    wrong["s"]["sums"] = torch.zeros(3, 5)
    assert "expected shape (2, 'D'), got (3, 5)" in fault(wrong, SUMS).reason


@pytest.mark.parametrize(("classes", "counts"), [([0, 4], None), ([-1], None), ([0], [-2])])
def test_values_out_of_range_are_refused(classes, counts):
    assert fault(sums(classes, 5, counts), SUMS).kind == "range"


def test_any_further_sizes():
    form = [Form(records={"e": {"x": Field(float, ("m", REST)), "y": Field(int, ("m",))}})]
    good = {"e": {"x": torch.zeros(2, 3, 4), "y": torch.zeros(2, dtype=torch.int64)}}
    assert check(good, form) == (None, {REST: (3, 4)})
    assert fault({"e": {**good["e"], "x": torch.tensor(1.0)}}, form).kind == "shape"


def test_the_likeliest_form_is_told_and_any_may_fit():
    forms = [Form(records={"a": {}, "b": {}}), Form(records={"c": {"x": Field(float, (1,))}})]
    assert fault({"c": {"x": torch.zeros(1)}}, forms) is None
    assert "'x'" in fault({"c": {"x": torch.zeros(2)}}, forms).reason
