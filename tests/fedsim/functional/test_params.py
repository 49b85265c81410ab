import pytest
import torch

from fedsim.functional.params import weighted_mean


def part(w, n):
    return {"w": torch.tensor(w), "n": torch.tensor(n)}


def test_the_mean_by_hand():
    mean = weighted_mean([(1, part([0.0, 4.0], 1)), (3, part([4.0, 0.0], 4))])
    assert mean["w"].tolist() == [3.0, 1.0]
    assert mean["n"].tolist() == 3, "integers are truncated"
    assert mean["n"].dtype == torch.int64


def test_one_part_comes_back_whatever_its_weight():
    assert weighted_mean([(0.3, part([0.7], 1))])["w"].tolist() == pytest.approx([0.7])


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="more than 0"):
        weighted_mean([])
    with pytest.raises(ValueError, match="more than 0"):
        weighted_mean([(0, part([1.0], 1))])
    with pytest.raises(ValueError, match="'n'"):
        weighted_mean([(1, part([1.0], 1)), (1, {"w": torch.ones(1)})])
