"""A network of a model collection as a backbone: building it and finding its features."""

import importlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.backbones.layers import image_shape

# What a network raises when it is run on images of a size that it was not made for.
_REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError)


class Adapter(nn.Module):
    """A network of a collection as a backbone.

    Args:
        net: Maps images ``[n, net_channels, H, W]`` to ``[n, d]``.
        label: What errors call the network, e.g. ``timm resnet18``.
        input_shape: ``(C, H, W)`` of the data.
        net_channels: Channels that the network takes; grey images are repeated to match.
        resize: Side in pixels that images are resized to (bilinear), or None to keep them.
        frozen: Keep the network in evaluation mode, batch normalisation included, and its
            parameters without gradient.

    Shapes:
        - **input:** ``[n, C, H, W]``.
        - **output:** ``[n, num_features]``.

    Raises:
        ValueError: If the channels do not fit or the network cannot take images of this size.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        label: str,
        input_shape: tuple[int, ...],
        net_channels: int,
        resize: int | None,
        frozen: bool,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(input_shape, backbone=label)
        if channels not in (1, net_channels):
            raise ValueError(
                f"{label} takes images with {net_channels} channels (or grey ones, repeated), got "
                f"{channels} channels"
            )
        if resize is not None and resize < 1:
            raise ValueError(f"{label}: resize must be a positive number of pixels, got {resize}")
        self.net = net
        self.frozen = frozen
        self._repeats = net_channels // channels
        self._resize = resize
        size = (height, width) if resize is None else (resize, resize)
        self.num_features = count_features(net, (net_channels, *size), label=label)
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Adapter":
        """Switches to training mode, which a frozen network ignores."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        if self._repeats > 1:
            inputs = inputs.repeat(1, self._repeats, 1, 1)
        if self._resize is not None:
            side = (self._resize, self._resize)
            inputs = F.interpolate(inputs, side, mode="bilinear", antialias=True)
        features: Tensor = self.net(inputs)
        return features


class Tapped(nn.Module):
    """A network whose features are what one of its parts gives, flattened.

    The last layers of a network know most about the classes it was trained on, earlier ones carry
    over better to others.

    Args:
        net: Any backbone.
        layer: Name of the part, as in ``net.named_modules()``, e.g. ``blocks.2``.
        input_shape: ``(C, H, W)`` of what the network takes.

    Raises:
        ValueError: If the network has no such part.
    """

    def __init__(self, net: nn.Module, layer: str, *, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        names = [name for name, _ in net.named_modules() if name]
        check_name(layer, names, label="layer", listing="the network's named_modules()")
        self.net = net
        self._found: Tensor | None = None
        net.get_submodule(layer).register_forward_hook(self._keep)
        self.num_features = count_features(self, tuple(input_shape), label=f"layer {layer}")

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        self.net(inputs)
        if self._found is None:
            raise RuntimeError("the network does not use the layer that its features come from")
        found, self._found = self._found, None
        return found.flatten(1)

    def _keep(self, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del part, inputs
        self._found = output


def check_name(name: str, known: Iterable[str], *, label: str, listing: str) -> None:
    """Refuses an unknown name.

    Args:
        name: What was asked for.
        known: What there is.
        label: What the error calls the collection.
        listing: Expression that lists the names, named by the error.

    Raises:
        ValueError: With the closest names.
    """
    names = list(known)
    if name in names:
        return
    close = get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ValueError(f"{label}: unknown name {name!r}; {hint}{listing} lists all {len(names)}")


def collection(module: str, *, package: str) -> Any:
    """The module of a collection, imported when it is needed.

    Args:
        module: Dotted name.
        package: Installable package, which is also the name of fedsim's extra.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"backbone={package} needs the package {package}, which is not installed: "
            f"pip install 'fedsim-lab[{package}]'",
            name=package,
        ) from error


def build(make: Callable[[], nn.Module], *, label: str, downloads: bool) -> nn.Module:
    """The network that a collection makes.

    Args:
        make: Calls the collection.
        label: What errors call the network.
        downloads: Whether pretrained weights are wanted, so that errors may be about them.

    Raises:
        ValueError: If the collection refuses the arguments.
        RuntimeError: If the pretrained weights cannot be had.
    """
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"{label} refuses its options: {_first_line(error)}") from error
    except (OSError, RuntimeError, ValueError) as error:
        if not downloads:
            raise ValueError(f"{label} cannot be built: {_first_line(error)}") from error
        raise RuntimeError(
            f"{label}: the pretrained weights cannot be had ({_first_line(error)}); ask for none, "
            f"or put them into the cache of the collection beforehand"
        ) from error


def remove_classifier(net: nn.Module, *, label: str) -> None:
    """Replaces the last linear or convolutional layer of a classifier by the identity.

    Args:
        net: Changed in place.
        label: What errors call the network.

    Raises:
        ValueError: If there is no such layer.
    """
    layers = [
        name
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and name
    ]
    if not layers:
        raise ValueError(f"{label} has no layer that could be its classifier")
    net.set_submodule(layers[-1], nn.Identity())


def count_features(net: nn.Module, shape: tuple[int, ...], *, label: str) -> int:
    """Width of a network's output, found by a run in evaluation mode, in which it is left.

    The run is on the ``meta`` device, which computes shapes only; networks that cannot do that
    run on one image of zeros.

    Args:
        net: The network.
        shape: Shape of one example, ``(C, H, W)``.
        label: What errors call the network.

    Raises:
        ValueError: If the network cannot take such images or its output is not ``[n, d]``.
    """
    net.eval()
    weights = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        try:
            shapes = {name: weight.to("meta") for name, weight in weights.items()}
            output = functional_call(net, shapes, torch.zeros(1, *shape, device="meta"))
        except _REFUSALS:
            try:
                output = net(torch.zeros(1, *shape))
            except _REFUSALS as error:
                raise ValueError(
                    f"{label} cannot take images of shape {shape} ({_first_line(error)}); set "
                    f"`resize` to the side it was made for, often 224"
                ) from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ValueError(
            f"{label} is no classifier of images: its features should be one vector per image, got "
            f"{tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
        )
    return output.shape[1]


def _first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
