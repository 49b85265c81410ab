import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedsim.backbones.vision import MLP, Conv4, Flatten, LeNet
from fedsim.model import Model

GREY, COLOUR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(shape: tuple[int, ...], n: int = 5) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [GREY, COLOUR, DIGITS, (64,)])
@pytest.mark.parametrize("backbone", [Flatten, MLP])
def test_images_and_vectors_are_flattened(backbone, shape):
    module = backbone(input_shape=shape)
    assert module(images(shape)).shape == (5, module.num_features)


@pytest.mark.parametrize(
    ("backbone", "shape", "num_features"),
    [
        (LeNet, GREY, 96),
        (LeNet, COLOUR, 96),
        (LeNet, (1, 16, 20), 96),
        (Conv4, GREY, 64),
        (Conv4, (3, 84, 84), 1600),
        (Conv4, DIGITS, 64),
        (Conv4, (1, 1, 1), 64),
        (Conv4, (2, 16, 48), 192),
    ],
)
def test_num_features_is_the_width_of_the_output(backbone, shape, num_features):
    module = backbone(input_shape=shape)
    assert module.num_features == num_features
    assert module(images(shape)).shape == (5, num_features)


@pytest.mark.parametrize("backbone", [MLP, LeNet, Conv4])
def test_examples_do_not_influence_each_other_in_evaluation(backbone):
    module = backbone(input_shape=GREY).eval()
    inputs = images(GREY)
    assert_close(module(inputs)[2:3], module(inputs[2:3]), rtol=1e-4, atol=1e-5)


def test_lenet_is_the_benchmark_network():
    torch.manual_seed(0)
    model = Model(LeNet(input_shape=GREY), 10)
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 10)),
    )
    assert count(model) == 29_066
    assert torch.equal(model(images(GREY)), plain(images(GREY)))


def test_lenet_refuses_small_digits_and_names_alternatives():
    with pytest.raises(ValueError, match=r"at least 16x16 pixels, got 8x8.*mlp.*conv4"):
        LeNet(input_shape=DIGITS)
    with pytest.raises(ValueError, match="got 32x15"):
        LeNet(input_shape=(3, 32, 15))


@pytest.mark.parametrize("backbone", [LeNet, Conv4])
def test_image_backbones_refuse_vectors(backbone):
    with pytest.raises(ValueError, match=rf"{backbone.__name__} needs images.*\(64,\)"):
        backbone(input_shape=(64,))


def test_linear_classifier_has_one_weight_per_input_and_class():
    assert count(Model(Flatten(input_shape=(64,)), 10)) == 650


def test_mlp_widths_and_dropout_apply():
    module = MLP(input_shape=(4,), hidden=[7, 5], dropout=0.5)
    assert count(module) == 4 * 7 + 7 + 7 * 5 + 5
    inputs = images((4,), n=64)
    assert not torch.equal(module(inputs), module(inputs))
    module.eval()
    assert torch.equal(module(inputs), module(inputs))


def test_mlp_dropout_also_follows_the_last_layer():
    torch.manual_seed(0)
    module = MLP(input_shape=(4,), hidden=[1000], dropout=0.5)
    inputs = images((4,))
    kept = (module(inputs) > 0).sum() / (module.eval()(inputs) > 0).sum()
    assert 0.4 < kept < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": []}, "backbone=linear"),
        ({"hidden": [8, 0]}, "positive width"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_mlp_refuses_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(input_shape=(4,), **arguments)


def test_conv4_blocks_hold_the_normalisation_asked_for():
    convolutions = 9 * 64 + 64 + 3 * (9 * 64 * 64 + 64)
    batch, group, none = (Conv4(input_shape=GREY, norm=n) for n in ("batch", "group", "none"))
    assert count(batch) == count(group) == convolutions + 4 * 2 * 64
    assert count(none) == convolutions
    assert list(group.buffers()) == []
    assert len(list(batch.buffers())) == 4 * 3
    with pytest.raises(ValueError, match="batch, group or none, got 'layer'"):
        Conv4(input_shape=GREY, norm="layer")


def test_group_normalisation_is_the_same_in_training_and_evaluation():
    module = Conv4(input_shape=DIGITS, width=20, norm="group")
    assert [part.num_groups for part in module.modules() if isinstance(part, nn.GroupNorm)] == [
        4
    ] * 4
    inputs = images(DIGITS)
    assert torch.equal(module.train()(inputs), module.eval()(inputs))
