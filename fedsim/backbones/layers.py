"""What the backbones share: normalisation by name and the check of the input shape."""

from math import gcd
from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single example whose map is one pixel.

    Such a batch, often a client's last one on small images, has no variance, and PyTorch refuses
    it. Here it is normalised by the running statistics, which it leaves alone.

    Shapes:
        - **input and output:** ``[n, channels, H, W]``.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """The normalised maps."""
        if self.training and maps.numel() == self.num_features:
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(maps)


def norm2d(norm: str, channels: int) -> nn.Module:
    """A normalisation layer for maps ``[n, channels, H, W]``.

    ``batch`` keeps running statistics, which clients with different data disagree about; ``group``
    keeps none. Group normalisation uses ``gcd(channels, 32)`` groups: 32, the default of the paper,
    wherever it divides the channels.

    Args:
        norm: ``batch``, ``group`` or ``none``.
        channels: Channels of the map.

    Raises:
        ValueError: If ``norm`` is none of the three.

    Source:
        Wu and He, Group Normalization, ECCV 2018, arXiv:1803.08494; for federated learning: Hsieh
        et al., The Non-IID Data Quagmire of Decentralized Machine Learning, ICML 2020,
        arXiv:1910.00189.
    """
    if norm == "batch":
        return BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(gcd(channels, 32), channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm must be batch, group or none, got {norm!r}")


def image_shape(input_shape: tuple[int, ...], *, backbone: str) -> tuple[int, int, int]:
    """The shape as ``(C, H, W)``.

    Args:
        input_shape: Shape of one example.
        backbone: Named by the error.

    Raises:
        ValueError: If the examples are no images.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{backbone} needs images of shape (C, H, W), got examples of shape "
            f"{tuple(input_shape)}; for vectors choose backbone=mlp or backbone=linear"
        )
    channels, height, width = input_shape
    return channels, height, width
