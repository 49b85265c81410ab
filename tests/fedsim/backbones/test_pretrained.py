import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet18

from fedsim.backbones import adapter
from fedsim.backbones.adapter import Adapter, build, count_features
from fedsim.backbones.pretrained import PytorchCV, Timm, Torchvision

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def images(shape: tuple[int, ...], n: int = 3) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("this test is offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("collection", "name", "shape", "num_features", "options"),
    [
        (Torchvision, "resnet18", GREY, 512, {}),
        (Torchvision, "efficientnet_b0", COLOUR, 1280, {}),
        (Torchvision, "mobilenet_v2", COLOUR, 1280, {}),
        (Torchvision, "mobilenet_v3_small", COLOUR, 1024, {}),
        (Torchvision, "shufflenet_v2_x0_5", COLOUR, 1024, {}),
        (Torchvision, "squeezenet1_1", COLOUR, 512, {}),
        (Torchvision, "densenet121", COLOUR, 1024, {}),
        (Torchvision, "convnext_tiny", COLOUR, 768, {}),
        (Torchvision, "regnet_y_400mf", COLOUR, 440, {}),
        (Torchvision, "mnasnet0_5", COLOUR, 1280, {}),
        (Torchvision, "swin_t", COLOUR, 768, {}),
        (Torchvision, "googlenet", COLOUR, 1024, {}),
        (Timm, "resnet18", GREY, 512, {}),
        (Timm, "resnet18.a1_in1k", COLOUR, 512, {}),
        (Timm, "mobilenetv3_small_050", COLOUR, 1024, {}),
        (Timm, "efficientnet_lite0", COLOUR, 1280, {}),
        (Timm, "convnext_atto", COLOUR, 320, {}),
        (Timm, "test_vit", (3, 160, 160), 64, {}),
        (Timm, "test_vit", COLOUR, 64, {"options": {"img_size": 32}}),
        (PytorchCV, "resnet20_cifar10", COLOUR, 64, {}),
        (PytorchCV, "preresnet20_cifar10", (1, 32, 32), 64, {}),
        (PytorchCV, "nin_cifar10", COLOUR, 192, {}),
        (PytorchCV, "squeezenet_v1_1", GREY, 512, {"resize": 224}),
    ],
)
def test_num_features_is_the_width_of_the_output(collection, name, shape, num_features, options):
    module = collection(input_shape=shape, name=name, **options)
    assert module.num_features == num_features
    inputs = images(shape)
    assert module(inputs).shape == (3, num_features)  # in training mode
    with torch.no_grad():
        features = module.eval()(inputs)
        assert features.shape == (3, num_features)
        assert_close(features[1:2], module(inputs[1:2]), rtol=1e-3, atol=1e-4)


def test_vision_transformer_of_torchvision_needs_its_size():
    with pytest.raises(ValueError, match=r"vit_b_32 cannot take.*\(3, 32, 32\).*`resize`"):
        Torchvision(input_shape=COLOUR, name="vit_b_32")
    module = Torchvision(input_shape=GREY, name="vit_b_32", resize=224, frozen=True)
    assert module(images(GREY, n=2)).shape == (2, 768)


def test_features_are_the_input_of_the_classifier():
    torch.manual_seed(0)
    module = Torchvision(input_shape=COLOUR, name="resnet18").eval()
    torch.manual_seed(0)
    whole = resnet18()
    inputs = images(COLOUR)
    assert_close(whole.fc(module(inputs)), whole.eval()(inputs))


def test_timm_builds_its_first_layer_for_the_channels_of_the_data():
    module = Timm(input_shape=(2, 32, 32), name="resnet18")
    assert module.net.conv1.weight.shape[1] == 2


def test_grey_images_are_repeated():
    torch.manual_seed(0)
    grey = Torchvision(input_shape=(1, 32, 32), name="squeezenet1_1").eval()
    torch.manual_seed(0)
    colour = Torchvision(input_shape=(3, 32, 32), name="squeezenet1_1").eval()
    inputs = images((1, 32, 32))
    assert_close(grey(inputs), colour(inputs.expand(-1, 3, -1, -1)))


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"3 channels.*got 2 channels"):
        Torchvision(input_shape=(2, 32, 32), name="resnet18")


def test_resize_keeps_constant_images_and_changes_the_size():
    module = Adapter(
        net=nn.Flatten(),
        label="flat",
        input_shape=(1, 4, 6),
        net_channels=1,
        resize=8,
        frozen=False,
    )
    assert module.num_features == 64
    assert_close(module(torch.full((2, 1, 4, 6), 3.0)), torch.full((2, 64), 3.0))
    with pytest.raises(ValueError, match="positive number of pixels, got 0"):
        Torchvision(input_shape=COLOUR, name="resnet18", resize=0)


@pytest.mark.parametrize("collection", [Timm, Torchvision])
def test_frozen_network_stays_in_evaluation_mode_and_gets_no_gradient(collection):
    module = collection(input_shape=COLOUR, name="resnet18", frozen=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    outer = nn.Sequential(module, nn.Linear(module.num_features, 2)).train()
    outer(images(COLOUR)).sum().backward()
    assert not any(part.training for part in module.net.modules())
    assert outer[1].weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_network_that_is_not_frozen_is_built_in_training_mode_and_learns():
    module = Timm(input_shape=COLOUR, name="resnet18")
    assert all(part.training for part in module.modules())
    module(images(COLOUR)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("collection", "name", "close"),
    [
        (Timm, "resnt18", "resnet18"),
        (Torchvision, "mobilenet_v3", "mobilenet_v3_small"),
        (PytorchCV, "resnet20_cifar", "resnet20_cifar10"),
    ],
)
def test_unknown_name_is_answered_with_close_ones_and_a_way_to_list(collection, name, close):
    with pytest.raises(ValueError, match=rf"{name}.*did you mean .*{close}.*list.* lists all \d+"):
        collection(input_shape=COLOUR, name=name)


def test_unknown_weights_option_and_tag_are_refused():
    with pytest.raises(ValueError, match=r"IMAGENET1K_V9.*did you mean IMAGENET1K_V1"):
        Torchvision(input_shape=COLOUR, name="resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(ValueError, match=r"timm resnet18 refuses its options.*img_sise"):
        Timm(input_shape=COLOUR, name="resnet18", options={"img_sise": 32})
    with pytest.raises(ValueError, match=r"timm resnet18\.foo cannot be built.*foo"):
        Timm(input_shape=COLOUR, name="resnet18.foo")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("unet_cityscapes", r"no classifier.*32, 32"), ("voca8flame", "cannot take images")],
)
def test_networks_that_do_not_classify_images_are_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        PytorchCV(input_shape=COLOUR, name=name)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match=r"alexnet cannot take images of shape \(3, 32, 32\)"):
        Torchvision(input_shape=COLOUR, name="alexnet")


def test_missing_collection_names_the_extra(monkeypatch):
    def missing(module: str):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(adapter.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"backbone=timm.*fedsim-lab\[timm\]"):
        Timm(input_shape=COLOUR, name="resnet18")


def test_failing_download_is_one_clear_line(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(
        RuntimeError, match="torchvision resnet18: the pretrained weights"
    ) as caught:
        Torchvision(input_shape=COLOUR, name="resnet18", weights="DEFAULT")
    assert "\n" not in str(caught.value)


def test_errors_of_a_build_without_download_do_not_blame_the_weights():
    def broken() -> nn.Module:
        raise RuntimeError("odd width\nand more")

    with pytest.raises(ValueError, match=r"^net cannot be built: odd width$"):
        build(broken, label="net", downloads=False)


class NeedsRealTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert float(self.norm(inputs).sum()) == 0.0
        return inputs.flatten(1)


def test_network_that_cannot_run_on_meta_is_counted_on_zeros_without_a_trace():
    net = NeedsRealTensors()
    assert count_features(net, (1, 3, 3), label="net") == 9
    assert int(net.norm.num_batches_tracked) == 0
