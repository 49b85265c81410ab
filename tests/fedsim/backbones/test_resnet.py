import importlib

import pytest
import torch
from torch.testing import assert_close

from fedsim.backbones.resnet import SlimResNet18


@pytest.mark.parametrize("training", [True, False])
def test_equals_avalanche_for_the_same_weights(training):
    reference = importlib.import_module("avalanche.models.slim_resnet18").SlimResNet18(10)
    reference.linear = torch.nn.Identity()
    module = SlimResNet18(input_shape=(3, 32, 32))
    module.load_state_dict(reference.state_dict())
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module.train(training)
    reference.train(training)
    assert_close(module(inputs), reference(inputs))
    for name, value in reference.state_dict().items():
        assert_close(module.state_dict()[name], value)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 84, 84), (1, 8, 8)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_features_are_eight_widths_at_any_size(shape, norm):
    module = SlimResNet18(input_shape=shape, width=4, norm=norm)
    assert module.num_features == 32
    assert module(torch.randn(2, *shape)).shape == (2, 32)


def test_number_of_parameters():
    # 1,109,240 with the linear head for 100 classes, of which 160 * 100 + 100 are the head's.
    module = SlimResNet18(input_shape=(3, 32, 32))
    assert sum(p.numel() for p in module.parameters()) == 1_109_240 - 16_100


def test_group_normalisation_keeps_no_statistics_and_examples_apart():
    module = SlimResNet18(input_shape=(3, 32, 32), width=4, norm="group")
    assert list(module.buffers()) == []
    inputs = torch.randn(3, 3, 32, 32)
    assert_close(module(inputs)[1:2], module(inputs[1:2]), rtol=1e-4, atol=1e-5)


def test_refuses_other_normalisations_and_vectors():
    with pytest.raises(ValueError, match="batch or group, got 'none'"):
        SlimResNet18(input_shape=(3, 32, 32), norm="none")
    with pytest.raises(ValueError, match="needs images"):
        SlimResNet18(input_shape=(64,))
