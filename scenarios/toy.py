"""Gaussian data of any size from a seed, for tests and measurements."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.data import Dataset, TensorExamples
from fedsim.seeding import generator


def toy(
    *,
    num_classes: int = 10,
    shape: Sequence[int] = (1, 8, 8),
    train_examples: int = 200,
    test_examples: int = 100,
    noise: float = 0.5,
    num_groups: int = 0,
    seed: int = 0,
) -> Dataset:
    """One Gaussian blob per class: ``x = centre(y) + noise * z``.

    Classes follow each other in turn, so they differ by one example at most in size.

    Args:
        num_classes: Number of classes ``K``.
        shape: Shape of one example, e.g. ``[C, H, W]`` or ``[d]``.
        train_examples: Number of training examples.
        test_examples: Number of test examples.
        noise: Standard deviation around the centre, whose entries have standard deviation 1.
        num_groups: Natural owners, assigned at random; ``0`` gives data without groups.
        seed: Seed of centres, noise and groups.

    Raises:
        ValueError: If a number is out of range.
    """
    if min(num_classes, train_examples, test_examples) < 1 or num_groups < 0:
        raise ValueError(
            "num_classes, train_examples and test_examples must be at least 1 and num_groups at"
            f" least 0, got {num_classes}, {train_examples}, {test_examples} and {num_groups}"
        )
    size = tuple(int(s) for s in shape)
    centres = torch.randn(num_classes, *size, generator=generator(seed, "centres"))

    def examples(split: str, n: int) -> TensorExamples:
        rng = generator(seed, "examples", split)
        targets = torch.arange(n) % num_classes
        groups: Tensor | None = None
        if num_groups:
            # every group occurs where there are enough examples
            groups = (torch.randperm(n, generator=rng)) % num_groups
        inputs = torch.randn(n, *size, generator=rng).mul_(noise).add_(centres[targets])
        return TensorExamples(inputs=inputs, targets=targets, groups=groups)

    return Dataset(
        name="toy",
        train=examples("train", train_examples),
        test=examples("test", test_examples),
        num_classes=num_classes,
        class_names=tuple(f"blob{c}" for c in range(num_classes)),
    )
