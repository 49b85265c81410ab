"""Characters of three curves, drawn by the computer: as many as one likes, and no file."""

import torch
from torch import Tensor

from fedsim.data import Dataset, TensorExamples
from fedsim.seeding import generator

STROKES = 3  # curves of a character
POINTS = 12  # of a curve that are inked
PEN = 1.5  # pixels from the middle of a curve to where there is no ink


def strokes(
    *,
    num_classes: int = 400,
    train_per_class: int = 15,
    test_per_class: int = 5,
    image_size: int = 14,
    noise: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Drawings of invented characters, in the manner of Omniglot; ink is bright.

    A character is three quadratic Bezier curves whose nine control points lie in
    ``[0.1, 0.9]^2``; every drawing moves each of them by Gaussian noise. A pixel is as bright as
    ``1.5 - d``, within ``[0, 1]``, at ``d`` pixels from the nearest curve.

    Args:
        num_classes: Characters ``K``.
        train_per_class: Training drawings of a character.
        test_per_class: Test drawings of a character.
        image_size: Side of the images in pixels.
        noise: Standard deviation of a control point, in sides of the image.
        seed: Seed of characters and drawings.

    Raises:
        ValueError: If a number is out of range.
    """
    numbers = num_classes, train_per_class, test_per_class, image_size
    if min(numbers) < 1 or noise < 0:
        raise ValueError(
            "num_classes, train_per_class, test_per_class and image_size must be at least 1 and"
            f" noise at least 0, got {', '.join(map(str, numbers))} and {noise}"
        )
    shape = num_classes, 1, STROKES, 3, 2  # [character, drawing, curve, control point, place]
    characters = 0.1 + 0.8 * torch.rand(shape, generator=generator(seed, "characters"))

    def examples(split: str, each: int) -> TensorExamples:
        rng = generator(seed, "drawings", split)
        moved = torch.randn(num_classes, each, *shape[2:], generator=rng)
        controls = (characters + noise * moved).flatten(0, 1)
        images = torch.cat([_inked(part, image_size) for part in controls.split(500)])  # type: ignore[no-untyped-call]
        targets = torch.arange(num_classes).repeat_interleave(each)
        return TensorExamples(inputs=images, targets=targets)

    return Dataset(
        name="strokes",
        train=examples("train", train_per_class),
        test=examples("test", test_per_class),
        num_classes=num_classes,
        class_names=tuple(f"character{c}" for c in range(num_classes)),
    )


def _inked(controls: Tensor, side: int) -> Tensor:
    """Images ``[n, 1, side, side]`` of curves with control points ``[n, curves, 3, 2]``."""
    time = torch.linspace(0, 1, POINTS)
    weights = torch.stack([(1 - time) ** 2, 2 * time * (1 - time), time**2])
    curves = torch.einsum("pt,nspx->nstx", weights, controls).flatten(1, 2)
    ticks = (torch.arange(side) + 0.5) / side
    pixels = torch.cartesian_prod(ticks, ticks)
    gaps = side * torch.cdist(pixels, curves).amin(-1)
    return (PEN - gaps).clamp(0.0, 1.0).reshape(-1, 1, side, side)
