import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedsim.functional.masks import (
    Mask,
    attach_masks,
    cut,
    detach_masks,
    l1_penalty,
    masks,
    proximal_penalty,
    soft_threshold,
    sparsity,
    weights,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


INPUTS = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def test_masks_of_ones_change_nothing_and_spare_biases():
    plain, masked = network().eval(), network().eval()
    names = attach_masks(masked, threshold=0.001)
    assert names == ["0.weight", "3.weight"]
    assert list(masks(masked)) == names
    assert list(weights(masked)) != names
    assert set(weights(masked)) == {name for name, _ in plain.named_parameters()}
    assert torch.equal(masked(INPUTS), plain(INPUTS))
    for name, parameter in plain.named_parameters():
        assert torch.equal(weights(masked)[name], parameter)


def test_weight_and_mask_gradients_by_hand():
    layer = nn.Linear(2, 1)
    attach_masks(layer, threshold=0.0)
    with torch.no_grad():
        weights(layer)["weight"].copy_(torch.tensor([[2.0, 3.0]]))
        masks(layer)["weight"].copy_(torch.tensor([[0.5, -1.0]]))
    layer(torch.tensor([[10.0, 100.0]])).sum().backward()
    assert_close(weights(layer)["weight"].grad, torch.tensor([[5.0, -100.0]]))  # x * m
    assert_close(masks(layer)["weight"].grad, torch.tensor([[20.0, 300.0]]))  # x * w
    assert_close(weights(layer)["bias"].grad, torch.ones(1))


def test_small_entries_count_in_training_and_not_in_evaluation():
    layer = nn.Linear(2, 1, bias=False)
    attach_masks(layer, threshold=0.1)
    with torch.no_grad():
        weights(layer)["weight"].fill_(1.0)
        masks(layer)["weight"].copy_(torch.tensor([[0.1, -0.05]]))
    x = torch.tensor([[1.0, 1.0]])
    assert_close(layer.train()(x), torch.tensor([[0.05]]))
    assert_close(layer.eval()(x), torch.tensor([[0.1]]))


def test_without_small_entries_the_threshold_is_idle():
    masked = network()
    attach_masks(masked, threshold=0.001)
    with torch.no_grad():
        for mask in masks(masked).values():
            mask.uniform_(0.001, 1.0)
    masked.eval()
    thresholded = masked(INPUTS)
    for part in masked.modules():
        if isinstance(part, Mask):
            part.threshold = 0.0
    assert torch.equal(masked(INPUTS), thresholded)


def test_masks_are_attached_in_the_modules_own_mode():
    layer = nn.Linear(2, 2).eval()
    attach_masks(layer, threshold=2.0)  # all ones lie below
    assert_close(layer(torch.ones(1, 2)), layer.bias.detach()[None])


def test_xavier_masks_are_not_ones():
    layer = nn.Linear(30, 20)
    attach_masks(layer, threshold=0.0, init="xavier")
    mask = masks(layer)["weight"].detach()
    assert 0 < float(mask.abs().max()) <= (6 / 50) ** 0.5
    assert float(mask.std()) > 0.1


def test_detach_gives_back_the_raw_weight_or_the_product():
    for keep_product, factor in ((False, [[1.0, 1.0]]), (True, [[2.0, 3.0]])):
        layer = nn.Linear(2, 1, bias=False)
        raw = layer.weight.detach().clone()
        attach_masks(layer, threshold=0.0)
        with torch.no_grad():
            masks(layer)["weight"].copy_(torch.tensor([[2.0, 3.0]]))
        detach_masks(layer, keep_product=keep_product)
        assert_close(layer.weight.detach(), raw * torch.tensor(factor))
        assert type(layer) is nn.Linear
        assert list(masks(layer)) == []
        detach_masks(layer)  # nothing left to do


def test_deep_copies_have_masks_of_their_own():
    layer = nn.Linear(2, 1)
    attach_masks(layer, threshold=0.0)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        masks(other)["weight"].zero_()
    assert_close(masks(layer)["weight"].detach(), torch.ones(1, 2))
    assert torch.equal(other(torch.ones(1, 2)), other.bias.detach()[None])


def test_writing_weights_leaves_masks_bit_identical():
    masked = network()
    attach_masks(masked, threshold=0.001)
    with torch.no_grad():
        for mask in masks(masked).values():
            mask.normal_()
    before = {name: mask.detach().clone() for name, mask in masks(masked).items()}
    with torch.no_grad():
        for weight in weights(masked).values():
            weight.copy_(torch.ones_like(weight))
    assert all(torch.equal(before[name], mask) for name, mask in masks(masked).items())
    assert torch.equal(masked[3].weight.detach(), before["3.weight"])


def test_nested_names_are_the_plain_ones():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2))})
    assert attach_masks(model, threshold=0.0) == ["a.0.weight"]
    assert set(weights(model)) == {"a.0.weight", "a.0.bias"}


def test_l1_gradient_is_the_sign():
    mask = torch.tensor([[0.3, -0.2], [0.0, 5.0]], requires_grad=True)
    other = torch.tensor([-1.0], requires_grad=True)
    penalty = l1_penalty({"a": mask, "b": other})
    assert_close(penalty, torch.tensor(6.5))
    (0.001 * penalty).backward()
    assert_close(mask.grad, 0.001 * torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
    assert_close(other.grad, torch.tensor([-0.001]))


def test_proximal_penalties_by_hand():
    weight = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0])}
    weight = {name: value.requires_grad_() for name, value in weight.items()}
    anchor = {"w": torch.zeros(2), "b": torch.tensor([1.0])}
    squared = proximal_penalty(weight, anchor)
    assert_close(squared, torch.tensor(26.0))
    squared.backward()
    assert_close(weight["w"].grad, torch.tensor([6.0, 8.0]))
    weight["w"].grad = None
    unsquared = proximal_penalty(weight, anchor, squared=False)
    assert_close(unsquared, torch.tensor(6.0))
    unsquared.backward()
    assert_close(weight["w"].grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("squared", [True, False])
def test_proximal_gradient_at_the_anchor_is_zero(squared):
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    proximal_penalty({"w": weight}, {"w": weight.detach().clone()}, squared=squared).backward()
    assert_close(weight.grad, torch.zeros(2))


def test_soft_threshold_minimises_its_objective():
    mask = torch.tensor([-2.0, -0.4, 0.0, 0.3, 1.5])
    assert_close(soft_threshold(mask, 0.5), torch.tensor([-1.5, 0.0, 0.0, 0.0, 1.0]))
    grid = torch.linspace(-3, 3, 6001)
    objective = 0.5 * grid.abs() + 0.5 * (grid - mask[:, None]).square()
    assert_close(soft_threshold(mask, 0.5), grid[objective.argmin(dim=1)], atol=2e-3, rtol=0.0)
    assert torch.equal(soft_threshold(mask, 0.0), mask)


def test_sparsity_counts_what_evaluation_drops():
    entries = {"a": torch.tensor([0.0, 0.0005, -0.0009, 0.001]), "b": torch.ones(4)}
    assert sparsity(entries, threshold=0.001) == 3 / 8
    assert sparsity(entries) == 1 / 8
    assert sparsity({}) == 0.0
    assert cut(entries["a"], 0.001).tolist() == pytest.approx([0.0, 0.0, 0.0, 0.001])


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="no weight"):
        attach_masks(nn.BatchNorm1d(3), threshold=0.0)
    layer = nn.Linear(2, 2)
    attach_masks(layer, threshold=0.0)
    with pytest.raises(ValueError, match="already"):
        attach_masks(layer, threshold=0.0)
    with pytest.raises(ValueError, match="threshold"):
        attach_masks(nn.Linear(2, 2), threshold=-0.1)
    with pytest.raises(ValueError, match="init"):
        attach_masks(nn.Linear(2, 2), threshold=0.0, init="zeros")
    with pytest.raises(ValueError, match="step"):
        soft_threshold(torch.ones(1), -1.0)
    with pytest.raises(ValueError, match="at least one"):
        l1_penalty({})
    with pytest.raises(ValueError, match="same names"):
        proximal_penalty({"a": torch.ones(1)}, {"b": torch.ones(1)})
