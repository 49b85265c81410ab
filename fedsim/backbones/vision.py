"""Small backbones that are trained from scratch."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedsim.backbones.layers import Norm, image_shape, norm2d


class Flatten(nn.Module):
    """The flattened input as features, so that the model is a linear classifier.

    Args:
        input_shape: Shape of one example, ``(C, H, W)`` or ``(d,)``.

    Shapes:
        - **input:** ``[n, *input_shape]``.
        - **output:** ``[n, prod(input_shape)]``.
    """

    def __init__(self, *, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = prod(input_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        return inputs.flatten(1)


class MLP(nn.Module):
    """Fully connected layers, each followed by ReLU and dropout; images are flattened.

    Args:
        input_shape: Shape of one example, ``(C, H, W)`` or ``(d,)``.
        hidden: Widths of the layers, the last one is the width of the features.
        dropout: Probability of dropping a feature, in ``[0, 1)``.

    Shapes:
        - **input:** ``[n, *input_shape]``.
        - **output:** ``[n, hidden[-1]]``.

    Raises:
        ValueError: If there is no layer, a width is not positive or ``dropout`` is out of range.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        hidden: Sequence[int] = (200, 200),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(
                f"MLP: hidden must list at least one positive width, got {list(hidden)}; for a "
                f"linear model choose backbone=linear"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"MLP: dropout must lie in [0, 1), got {dropout}")
        widths = [prod(input_shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.dropout = dropout
        self.num_features = widths[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        features = inputs.flatten(1)
        for layer in self.layers:
            features = torch.relu(layer(features))
            if self.dropout > 0.0:  # without dropout no random operation, which vmap would refuse
                features = F.dropout(features, self.dropout, self.training)
        return features


class LeNet(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and one fully connected layer.

    With the default widths, 28x28 grey images and a linear head for ten classes: 29,066 parameters.

    Args:
        input_shape: ``(C, H, W)``, at least 16x16 pixels.
        channels: Channels of the two convolutions.
        hidden: Width of the fully connected layer, which gives the features.

    Shapes:
        - **input:** ``[n, C, H, W]``.
        - **output:** ``[n, hidden]``.

    Raises:
        ValueError: If the examples are no images or smaller than 16x16 pixels.

    Source:
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998; with ReLU, max
        pooling and other widths than the paper's.
    """

    smallest = 16

    def __init__(
        self, *, input_shape: tuple[int, ...], channels: tuple[int, int] = (8, 16), hidden: int = 96
    ) -> None:
        super().__init__()
        depth, height, width = image_shape(input_shape, backbone="LeNet")
        if min(height, width) < self.smallest:
            raise ValueError(
                f"LeNet needs images of at least {self.smallest}x{self.smallest} pixels, got "
                f"{height}x{width}; choose backbone=mlp or backbone=conv4"
            )
        first, second = channels
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.conv1 = nn.Conv2d(depth, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * rows * columns, hidden)
        self.num_features = hidden

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        maps = F.max_pool2d(torch.relu(self.conv1(inputs)), 2)
        maps = F.max_pool2d(torch.relu(self.conv2(maps)), 2)
        return torch.relu(self.fc1(maps.flatten(1)))


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, normalisation, ReLU and 2x2 max pooling.

    A block leaves the pooling out once its map is a single pixel high or wide, so that 8x8 digits
    work: there the maps are 4x4, 2x2, 1x1 and 1x1. From 16x16 pixels on it is the paper's network:
    64 features on 28x28 images, 1600 on 84x84.

    Args:
        input_shape: ``(C, H, W)``.
        width: Channels of every block.
        norm: ``batch``, ``group`` or ``none`` (see :func:`fedsim.backbones.layers.norm2d`).

    Shapes:
        - **input:** ``[n, C, H, W]``.
        - **output:** ``[n, width * H' * W']``, with ``H' = H // 16`` from 16 pixels on.

    Raises:
        ValueError: If the examples are no images or ``norm`` is unknown.

    Source:
        Vinyals et al., Matching Networks for One Shot Learning, NeurIPS 2016, arXiv:1606.04080.
    """

    num_blocks = 4

    def __init__(
        self, *, input_shape: tuple[int, ...], width: int = 64, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape(input_shape, backbone="Conv4")
        self.blocks = nn.Sequential()
        for _ in range(self.num_blocks):
            block = [nn.Conv2d(channels, width, 3, padding=1), norm2d(norm, width), nn.ReLU()]
            if min(height, columns) > 1:
                block.append(nn.MaxPool2d(2))
                height, columns = height // 2, columns // 2
            self.blocks.append(nn.Sequential(*block))
            channels = width
        self.num_features = width * height * columns

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        maps: Tensor = self.blocks(inputs)
        return maps.flatten(1)
