"""How the same examples look in another domain."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedsim.seeding import generator


class Shift(Protocol):
    """Changes the inputs of an experience; the same for every client."""

    def check(self, input_shape: tuple[int, ...], num_experiences: int) -> None:
        """Raise ValueError where such inputs or so many experiences cannot be served."""
        ...

    def __call__(self, inputs: Tensor, experience: int, seed: int) -> Tensor:
        """The inputs ``[n, ...]`` as they look in the experience; experience 0 may differ too."""
        ...


class Rotation:
    """Images turned counter-clockwise about their centre.

    Multiples of 90 degrees on square images move pixels exactly; other angles interpolate
    bilinearly, and corners that come into view repeat the nearest border pixel.

    Args:
        degrees: Angle between one experience and the next (experience ``e`` is turned by
            ``e * degrees``), or one angle per experience.
    """

    def __init__(self, *, degrees: float | Sequence[float]) -> None:
        self._degrees = _number_or_list(degrees)

    def check(self, input_shape: tuple[int, ...], num_experiences: int) -> None:
        """See :meth:`Shift.check`."""
        _require_list("degrees", self._degrees, num_experiences)
        if len(input_shape) != 3:
            raise ValueError(f"Rotation needs images [C, H, W], got inputs of shape {input_shape}")

    def __call__(self, inputs: Tensor, experience: int, seed: int) -> Tensor:
        """See :class:`Shift`."""
        del seed
        degrees = _value(self._degrees, experience) % 360.0
        if degrees % 90.0 == 0.0 and inputs.shape[-1] == inputs.shape[-2]:
            return torch.rot90(inputs, int(degrees // 90), dims=(-2, -1))
        return _rotate(inputs, math.radians(degrees))


class Permutation:
    """Pixels (or the entries of a vector) in another place, the same for all channels.

    Experience 0 keeps its order. Experience ``e`` has a permutation drawn from ``(seed, e)``.

    Source:
        Goodfellow et al., An Empirical Investigation of Catastrophic Forgetting, arXiv:1312.6211.
    """

    def check(self, input_shape: tuple[int, ...], num_experiences: int) -> None:
        """See :meth:`Shift.check`: every shape will do."""
        del input_shape, num_experiences

    def __call__(self, inputs: Tensor, experience: int, seed: int) -> Tensor:
        """See :class:`Shift`."""
        if experience == 0:
            return inputs
        flat = inputs.flatten(-2) if inputs.dim() > 2 else inputs
        order = torch.randperm(flat.shape[-1], generator=generator(seed, "pixels", experience))
        return flat[..., order].view(inputs.shape)


class Brightness:
    """A constant is added to the inputs as the model sees them.

    Args:
        step: What each experience adds to the one before (experience ``e`` adds ``e * step``), or
            one value per experience. In the unit of the normalised input, so ``1.0`` is one
            standard deviation for data sets that are standardised.
    """

    def __init__(self, *, step: float | Sequence[float]) -> None:
        self._step = _number_or_list(step)

    def check(self, input_shape: tuple[int, ...], num_experiences: int) -> None:
        """See :meth:`Shift.check`: every shape will do."""
        del input_shape
        _require_list("step", self._step, num_experiences)

    def __call__(self, inputs: Tensor, experience: int, seed: int) -> Tensor:
        """See :class:`Shift`."""
        del seed
        return inputs + _value(self._step, experience)


def _number_or_list(value: float | Sequence[float]) -> float | list[float]:
    return float(value) if isinstance(value, int | float) else [float(v) for v in value]


def _value(value: float | list[float], experience: int) -> float:
    return value[experience] if isinstance(value, list) else value * experience


def _require_list(name: str, value: float | list[float], num_experiences: int) -> None:
    if isinstance(value, list) and len(value) != num_experiences:
        raise ValueError(f"{name} has {len(value)} entries for {num_experiences} experiences")


def _rotate(images: Tensor, radians: float) -> Tensor:
    """Images ``[n, C, H, W]`` turned counter-clockwise by any angle."""
    height, width = images.shape[-2:]
    cos, sin = math.cos(radians), math.sin(radians)
    # maps output to input places, x to the right and y down, in units of half the image
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    size = [len(images), *images.shape[1:]]
    grid = F.affine_grid(theta.expand(len(images), 2, 3), size, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
