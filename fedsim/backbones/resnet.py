"""The reduced ResNet-18 of continual learning."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedsim.backbones.layers import image_shape, norm2d

BlockNorm = Literal["batch", "group"]


class BasicBlock(nn.Module):
    """``relu(x' + norm(conv(relu(norm(conv(x))))))``, where ``x'`` is ``x`` projected if need be.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Stride of the first convolution.
        norm: ``batch`` or ``group``.

    Shapes:
        - **input:** ``[n, before, H, W]``.
        - **output:** ``[n, after, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, *, before: int, after: int, stride: int, norm: BlockNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = norm2d(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = norm2d(norm, after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(norm2d(norm, after))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[n, after, H', W']``."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(maps)))))
        return torch.relu(inner + self.shortcut(maps))


class SlimResNet18(nn.Module):
    """ResNet-18 with 20 instead of 64 channels in its first stage and no pooling before it.

    Parameter names are Avalanche's, so that its weights load here; the outputs are then equal on
    32x32 images. Batch normalisation is the original; ``group`` suits clients whose data differ.

    Args:
        input_shape: ``(C, H, W)``.
        width: Channels of the first stage, ``nf`` in the paper's code.
        norm: ``batch`` or ``group`` (see :func:`fedsim.backbones.layers.norm2d`).

    Shapes:
        - **input:** ``[n, C, H, W]``.
        - **output:** ``[n, 8 * width]``.

    Raises:
        ValueError: If the examples are no images or ``norm`` is neither of the two.

    Source:
        Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017,
        arXiv:1706.08840. The last pooling is over the whole map instead of 4x4 pixels; for images
        of 25 to 32 pixels that is the same.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], width: int = 20, norm: BlockNorm = "batch"
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group"):
            raise ValueError(f"SlimResNet18: norm must be batch or group, got {norm!r}")
        channels, _, _ = image_shape(input_shape, backbone="SlimResNet18")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = norm2d(norm, width)
        self.layer1 = self._stage(width, width, stride=1, norm=norm)
        self.layer2 = self._stage(width, 2 * width, stride=2, norm=norm)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2, norm=norm)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2, norm=norm)
        self.num_features = 8 * width

    @staticmethod
    def _stage(before: int, after: int, *, stride: int, norm: BlockNorm) -> nn.Sequential:
        """Two blocks, the first of which changes channels and size."""
        return nn.Sequential(
            BasicBlock(before=before, after=after, stride=stride, norm=norm),
            BasicBlock(before=after, after=after, stride=1, norm=norm),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        maps = torch.relu(self.bn1(self.conv1(inputs)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)
