"""What attackers and faults send, against numbers worked out by hand."""

import pytest
import torch

from fedsim.functional.attacks import HUGE, SPOIL, reversed_update, with_noise
from fedsim.seeding import generator


def records():
    return {"arrays": {"w": torch.tensor([[3.0, 1.0]]), "steps": torch.tensor([7])}}


def test_an_update_is_reversed_around_what_was_received():
    received = {"arrays": {"w": torch.tensor([[1.0, 2.0]]), "steps": torch.tensor([5])}}
    sent = reversed_update(records(), received, 5.0)["arrays"]
    assert sent["w"].tolist() == [[1.0 - 5 * 2.0, 2.0 - 5 * -1.0]]
    assert sent["steps"].tolist() == [7]


def test_what_was_not_received_changes_its_sign():
    assert reversed_update(records(), {}, 2.0)["arrays"]["w"].tolist() == [[-6.0, -2.0]]


def test_noise_has_the_asked_deviation_and_spares_integers():
    zeros = {"arrays": {"w": torch.zeros(20_000), "steps": torch.tensor([7])}}
    noisy = with_noise(zeros, 0.5, generator(0, "noise"))["arrays"]
    assert noisy["w"].std().item() == pytest.approx(0.5, rel=0.02)
    assert noisy["w"].mean().item() == pytest.approx(0.0, abs=0.02)
    assert noisy["steps"].tolist() == [7]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("nan", [[float("nan"), 1.0]]),
        ("inf", [[float("inf"), 1.0]]),
        ("huge", [[HUGE, HUGE]]),
    ],
)
def test_spoiled_values(kind, wanted):
    original = records()
    spoiled = SPOIL[kind](original)["arrays"]
    torch.testing.assert_close(spoiled["w"], torch.tensor(wanted), equal_nan=True)
    assert spoiled["steps"].tolist() == [7]
    assert original["arrays"]["w"].tolist() == [[3.0, 1.0]]  # what the client holds is its own


def test_spoiled_forms():
    assert SPOIL["wrong_shape"](records())["arrays"]["w"].shape == (1, 1, 2)
    assert SPOIL["wrong_dtype"](records())["arrays"]["w"].dtype == torch.float64
    assert list(SPOIL["wrong_keys"](records())["arrays"]) == ["w?", "steps"]
