import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedsim.backbones.layers import BatchNorm2d, norm2d
from fedsim.backbones.resnet import SlimResNet18
from fedsim.backbones.vision import Conv4


def test_batch_normalisation_is_pytorchs_for_more_than_one_value():
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for shape in [(4, 3, 2, 2), (1, 3, 2, 2), (2, 3, 1, 1)]:
        maps = torch.randn(*shape)
        assert torch.equal(ours(maps), theirs(maps))
    assert_close(ours.state_dict(), theirs.state_dict())
    assert torch.equal(ours.eval()(maps), theirs.eval()(maps))


def test_single_value_is_normalised_by_the_running_statistics_and_has_a_gradient():
    norm = BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    normalised = norm(torch.tensor([3.0, 5.0]).view(1, 2, 1, 1))
    assert_close(normalised.flatten(), torch.tensor([1.0, 1.0]), rtol=1e-4, atol=0)
    normalised.sum().backward()
    assert_close(norm.bias.grad, torch.ones(2))
    assert_close(norm.state_dict(), before)


@pytest.mark.parametrize("backbone", [Conv4, SlimResNet18])
def test_a_batch_of_one_digit_can_be_trained_on(backbone):
    module = backbone(input_shape=(1, 8, 8)).train()
    module(torch.randn(1, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (20, 4), (160, 32), (3, 1)])
def test_group_normalisation_has_thirty_two_groups_where_they_divide(channels, groups):
    assert norm2d("group", channels).num_groups == groups
