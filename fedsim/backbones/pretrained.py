"""Adapters to the model collections timm, torchvision and pytorchcv.

Each adapter builds a classifier by name and takes its last layer away. Weights are downloaded only
when pretrained ones are asked for. The inputs are used as the data set normalises them; for
pretrained weights give the data set the mean and standard deviation they were trained with.
"""

from collections.abc import Mapping
from typing import Any

from fedsim.backbones.adapter import (
    Adapter,
    build,
    check_name,
    collection,
    remove_classifier,
)
from fedsim.backbones.layers import image_shape

_AUXILIARY = {"aux1": None, "aux2": None, "AuxLogits": None, "aux_logits": False}


class Timm(Adapter):
    """A model of timm without its classifier.

    Args:
        input_shape: ``(C, H, W)``; the first layer is built, or for pretrained weights converted,
            for ``C`` channels.
        name: Name of the model, e.g. ``resnet18``, also with a tag (``resnet18.a1_in1k``).
        pretrained: Download the weights.
        options: Further arguments of ``timm.create_model``, e.g. ``{img_size: 32}`` or
            ``{drop_path_rate: 0.1}``.
        resize: See :class:`Adapter`.
        frozen: See :class:`Adapter`.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        ValueError: If the name or an option is unknown or the images do not fit.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        name: str,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
        resize: int | None = None,
        frozen: bool = False,
    ) -> None:
        timm = collection("timm", package="timm")
        label = f"timm {name}"
        channels = image_shape(input_shape, backbone=label)[0]
        plain = name.split(".")[0]
        check_name(plain, timm.list_models(), label="timm", listing="timm.list_models()")
        net = build(
            lambda: timm.create_model(
                name, pretrained=pretrained, num_classes=0, in_chans=channels, **(options or {})
            ),
            label=label,
            downloads=pretrained,
        )
        super().__init__(
            net=net,
            label=label,
            input_shape=input_shape,
            net_channels=channels,
            resize=resize,
            frozen=frozen,
        )


class Torchvision(Adapter):
    """A classifier of torchvision without its last layer.

    Args:
        input_shape: ``(1, H, W)`` or ``(3, H, W)``.
        name: Name of the model, e.g. ``resnet18`` or ``vit_b_16``.
        weights: Name of the weights, e.g. ``DEFAULT`` or ``IMAGENET1K_V1``; None draws them.
        resize: See :class:`Adapter`.
        frozen: See :class:`Adapter`.

    Raises:
        ValueError: If the name or the weights are unknown or the images do not fit.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        name: str,
        weights: str | None = None,
        resize: int | None = None,
        frozen: bool = False,
    ) -> None:
        models = collection("torchvision.models", package="torchvision")
        label = f"torchvision {name}"
        listing = "torchvision.models.list_models(module=torchvision.models)"
        names = models.list_models(module=models)
        check_name(name, names, label="torchvision", listing=listing)
        if weights is not None and weights != "DEFAULT":
            known = [entry.name for entry in models.get_model_weights(name)]
            listing = f"list(torchvision.models.get_model_weights({name!r}))"
            check_name(weights, known, label=f"{label} weights", listing=listing)
        net = build(
            lambda: models.get_model(name, weights=weights),
            label=label,
            downloads=weights is not None,
        )
        # Some networks have further classifiers that add outputs in training mode.
        for part, without in _AUXILIARY.items():
            if hasattr(net, part):
                setattr(net, part, without)
        remove_classifier(net, label=label)
        super().__init__(
            net=net,
            label=label,
            input_shape=input_shape,
            net_channels=3,
            resize=resize,
            frozen=frozen,
        )


class PytorchCV(Adapter):
    """A classifier of pytorchcv without its last layer.

    Args:
        input_shape: ``(1, H, W)`` or ``(3, H, W)``.
        name: Name of the model, e.g. ``resnet20_cifar10`` (32x32 pixels) or ``resnet18`` (224x224).
        pretrained: Download the weights.
        resize: See :class:`Adapter`.
        frozen: See :class:`Adapter`.

    Raises:
        ModuleNotFoundError: If pytorchcv is not installed.
        ValueError: If the name is unknown, is no classifier of images, or the images do not fit.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        name: str,
        pretrained: bool = False,
        resize: int | None = None,
        frozen: bool = False,
    ) -> None:
        provider = collection("pytorchcv.model_provider", package="pytorchcv")
        label = f"pytorchcv {name}"
        listing = "list(pytorchcv.model_provider._models)"
        check_name(name, provider._models, label="pytorchcv", listing=listing)
        net = build(
            lambda: provider.get_model(name, pretrained=pretrained),
            label=label,
            downloads=pretrained,
        )
        remove_classifier(net, label=label)
        super().__init__(
            net=net,
            label=label,
            input_shape=input_shape,
            net_channels=3,
            resize=resize,
            frozen=frozen,
        )
