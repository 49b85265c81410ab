"""Points of the plane for the figure of the key-value bottleneck."""

import torch

from fedsim.data import Dataset, TensorExamples
from fedsim.seeding import generator

CENTRES = (
    (0.25, 0.25),
    (0.75, 0.25),
    (0.75, 0.75),
    (0.25, 0.75),
    (0.75, 0.5),
    (0.5, 0.75),
    (0.25, 0.5),
    (0.5, 0.25),
)


def ring(
    *,
    train_per_class: int = 50,
    test_per_class: int = 50,
    noise: float = 0.035,
    seed: int = 0,
) -> Dataset:
    """Eight Gaussian blobs on a ring of the unit square, one class each.

    Classes 0 to 3 lie in the corners of a square, classes 4 to 7 in the middle of its sides.

    Args:
        train_per_class: Training points of a class.
        test_per_class: Test points of a class.
        noise: Standard deviation of a blob.
        seed: Draws the points.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Figure 2 of Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240.
    """
    if min(train_per_class, test_per_class) < 1 or noise < 0:
        raise ValueError(
            "train_per_class and test_per_class must be at least 1 and noise at least 0, got"
            f" {train_per_class}, {test_per_class} and {noise}"
        )
    centres = torch.tensor(CENTRES)

    def examples(split: str, count: int) -> TensorExamples:
        targets = torch.arange(len(centres)).repeat_interleave(count)
        rng = generator(seed, "ring", split)
        points = centres[targets] + noise * torch.randn(len(targets), 2, generator=rng)
        return TensorExamples(inputs=points, targets=targets)

    return Dataset(
        name="ring",
        train=examples("train", train_per_class),
        test=examples("test", test_per_class),
        num_classes=len(centres),
    )


def uniform_points(*, count: int = 100_000, seed: int = 0) -> Dataset:
    """Points uniform in the unit square, without classes: unlabelled data for keys.

    Args:
        count: Points.
        seed: Draws them.
    """

    def examples(split: str, n: int) -> TensorExamples:
        points = torch.rand(n, 2, generator=generator(seed, "uniform", split))
        return TensorExamples(inputs=points, targets=torch.zeros(n, dtype=torch.int64))

    return Dataset(
        name="uniform", train=examples("train", count), test=examples("test", 1), num_classes=1
    )
