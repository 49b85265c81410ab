import pytest
import torch
from torch.testing import assert_close

from fedsim.functional.exemplars import distillation, herding


def test_herding_by_hand():
    """Mean 2: first 2 itself, then the point that keeps the mean nearest to 2."""
    features = torch.tensor([[0.0], [2.0], [1.5], [4.5], [2.0]])
    assert herding(features, 2).tolist() == [1, 4]
    assert herding(features, 9).tolist()[:2] == [1, 4]
    assert sorted(herding(features, 9).tolist()) == [0, 1, 2, 3, 4]


def test_herding_approaches_the_mean_faster_than_chance():
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    chosen = features[herding(features, 20)].mean(0)
    gap = (chosen - features.mean(0)).norm()
    assert gap < 0.3 * (features[:20].mean(0) - features.mean(0)).norm()


def test_distillation_is_zero_for_the_same_logits_and_blind_to_new_classes():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    old = torch.tensor([0, 1])
    same = distillation(logits, torch.tensor([[1.0, 2.0, -9.0]]), old, 2.0)
    assert same.item() == pytest.approx(0, abs=1e-6)
    value = distillation(logits, torch.tensor([[2.0, 1.0, 0.0]]), old, 2.0)
    p = torch.softmax(torch.tensor([1.0, 0.5]), 0)
    q = torch.softmax(torch.tensor([0.5, 1.0]), 0)
    assert_close(value, 4 * (p * (p / q).log()).sum())
    value.backward()
    assert logits.grad[0, 2] == 0.0


def test_distillation_of_no_class_is_zero():
    logits = torch.ones(2, 3, requires_grad=True)
    value = distillation(logits, logits, torch.empty(0, dtype=torch.int64), 2.0)
    value.backward()
    assert value.item() == 0.0
