"""Gradients of fully connected models, by hand and by autograd."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.fedprox import FedProx
from fedsim.backbones.vision import MLP, LeNet
from fedsim.cohort_dense import cross_entropy_gradients, dense_gradients
from fedsim.data import Batch
from tests.fedsim.builders import small_client, small_setting


def test_one_example_by_hand():
    """Scores (0, ln 3) give probabilities (1/4, 3/4)."""
    weight = torch.tensor([[[0.0], [3.0]]]).log1p() * torch.tensor([[[1.0], [0.0]]])
    bias = torch.tensor([[0.0, 3.0]]).log()
    bias[0, 0] = 0.0
    losses, [(by_weight, by_bias)] = cross_entropy_gradients(
        [(weight, bias)], torch.tensor([[[2.0]]]), torch.tensor([[1]])
    )
    assert losses[0].item() == pytest.approx(-torch.tensor(0.75).log().item())
    torch.testing.assert_close(by_bias, torch.tensor([[0.25, -0.25]]))
    torch.testing.assert_close(by_weight, torch.tensor([[[0.5], [-0.5]]]))


@pytest.mark.parametrize("hidden", [[], [7], [7, 5]])
@pytest.mark.parametrize("bias", [True, False])
def test_autograd_says_the_same(hidden, bias):
    torch.manual_seed(0)
    widths = [6, *hidden, 4]
    nets = [
        [nn.Linear(a, b, bias=bias).double() for a, b in itertools.pairwise(widths)]
        for _ in range(3)
    ]
    inputs, targets = torch.randn(3, 5, 6).double(), torch.randint(4, (3, 5))
    stacked = [
        (
            torch.stack([net[n].weight.detach() for net in nets]),
            torch.stack([net[n].bias.detach() for net in nets]) if bias else None,
        )
        for n in range(len(nets[0]))
    ]
    losses, found = cross_entropy_gradients(stacked, inputs.clone(), targets)
    for k, net in enumerate(nets):
        values = inputs[k]
        for n, layer in enumerate(net):
            values = layer(values if n == 0 else values.relu())
        loss = cross_entropy(values, targets[k])
        loss.backward()
        torch.testing.assert_close(losses[k], loss.detach())
        for layer, (by_weight, by_bias) in zip(net, found, strict=True):
            torch.testing.assert_close(by_weight[k], layer.weight.grad)
            if bias:
                torch.testing.assert_close(by_bias[k], layer.bias.grad)


def test_a_clients_own_loss():
    client = small_client(small_setting(backbone=partial(MLP, hidden=[8])))
    gradients = dense_gradients(client)
    inputs, targets = torch.randn(2, 5, 6), torch.randint(4, (2, 5))
    weights = {n: torch.stack([t, t + 0.1]) for n, t in client.tensors().items()}
    losses, found = gradients(weights, Batch(inputs, targets))
    assert found.keys() == weights.keys()
    for k in range(2):
        client.load_arrays({n: t[k] for n, t in weights.items()})
        loss = client.loss(client.model, Batch(inputs[k], targets[k]), None, None)
        client.model.zero_grad()
        loss.backward()
        torch.testing.assert_close(losses[k], loss.detach())
        for name, parameter in client.model.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.grad)


def test_what_is_not_plain_is_left_to_vmap():
    assert dense_gradients(small_client()) is not None
    assert dense_gradients(small_client(kind=FedProx, mu=0.1)) is None
    dropping = small_setting(backbone=partial(MLP, hidden=[8], dropout=0.5))
    assert dense_gradients(small_client(dropping)) is None
    images = small_setting(shape=(1, 16, 16), backbone=LeNet)
    assert dense_gradients(small_client(images)) is None
    hooked = small_client()
    hooked.model.head.register_forward_hook(lambda *_: None)
    assert dense_gradients(hooked) is None
    pruned = small_client()
    nn.utils.parametrize.register_parametrization(pruned.model.head, "weight", nn.Identity())
    assert dense_gradients(pruned) is None
