"""Clipping of gradients, dense and sparse."""

import torch
from torch import nn

from fedsim.training import clip_gradients


def with_gradients():
    bag = nn.EmbeddingBag(4, 2, mode="sum", sparse=True)
    line = nn.Linear(2, 1, bias=False)
    bag.weight.data.fill_(1.0)
    line.weight.data.fill_(2.0)
    line(bag(torch.tensor([[1, 3, 1]]))).sum().backward()
    return bag, line


def test_a_row_met_twice_counts_as_one_gradient():
    bag, line = with_gradients()
    # gradients: row 1 is (4, 4), row 3 is (2, 2), of the line (3, 3): 58 is their square
    clip_gradients([bag.weight, line.weight], 1.0)
    norm = 58**0.5
    rows = bag.weight.grad.to_dense()
    torch.testing.assert_close(rows[1], torch.full((2,), 4 / norm), rtol=1e-5, atol=0)
    torch.testing.assert_close(rows[3], torch.full((2,), 2 / norm), rtol=1e-5, atol=0)
    torch.testing.assert_close(line.weight.grad, torch.full((1, 2), 3 / norm), rtol=1e-5, atol=0)


def test_small_gradients_are_left_alone():
    bag, line = with_gradients()
    clip_gradients([bag.weight, line.weight], 100.0)
    assert line.weight.grad.tolist() == [[3.0, 3.0]]


def test_dense_gradients_get_the_bits_that_torch_gives():
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    for layer in (ours, theirs):
        torch.manual_seed(0)
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
    clip_gradients(ours.parameters(), 0.3)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.bias.grad, theirs.bias.grad)


def test_without_gradients_nothing_happens():
    layer = nn.Linear(2, 2)
    clip_gradients(layer.parameters(), 1.0)
    assert layer.weight.grad is None
