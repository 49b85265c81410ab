"""Examples as tensors: a data set, and the shard of it that one client holds in one experience."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Inputs = Any  # a Tensor [n, ...] for images and vectors, a torch_geometric Data for graphs


class Examples(Protocol):
    """Labelled examples that can be picked by index.

    Attributes:
        targets: Class of every example, int64, shape ``[N]``.
        groups: Natural owner of every example (writer, alphabet, country), int64, shape ``[N]``,
            or None where the data has no such thing.
    """

    @property
    def targets(self) -> Tensor:
        """Class of every example."""
        ...

    @property
    def groups(self) -> Tensor | None:
        """Natural owner of every example, or None."""
        ...

    def take(self, indices: Indices) -> Tensor:
        """Float inputs of the given examples, shape ``[n, ...]``, ready for a model."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorExamples:
    """Examples that lie in one tensor.

    Images stay ``uint8`` in memory and are scaled and normalised when they are taken:
    ``(x / 255 - mean) / std`` per channel. Float inputs are taken as they are, except that
    ``mean`` and ``std`` apply to them as well when given.

    Attributes:
        inputs: ``uint8`` images ``[N, C, H, W]`` or floats of any shape ``[N, ...]``.
        targets: See :class:`Examples`.
        groups: See :class:`Examples`.
        mean: Per-channel mean, or None.
        std: Per-channel standard deviation, or None.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def take(self, indices: Indices) -> Tensor:
        """See :meth:`Examples.take`."""
        inputs = self.inputs.index_select(0, torch.from_numpy(indices))
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255.0)
        if self.mean is not None and self.std is not None:
            shape = (-1,) + (1,) * (inputs.dim() - 2)
            mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
            inputs = (inputs - mean) / std
        return inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A named pair of training and test examples.

    Attributes:
        name: What the reports call it.
        train: Training examples.
        test: Test examples.
        num_classes: Number of classes ``K``; targets lie in ``[0, K)``.
        class_names: Name of every class, or empty.

    Raises:
        TypeError: If inputs or targets are no tensors, or of a type that models cannot take.
        ValueError: If the lengths of inputs, targets and groups differ, a target is no class, or
            an input is NaN or infinite.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("test", self.test)):
            where = f"data set {self.name}, {split}"
            check_targets(examples.targets, self.num_classes, where)
            groups = getattr(examples, "groups", None)
            if groups is not None and len(groups) != len(examples.targets):
                raise ValueError(
                    f"{where}: {len(groups)} groups for {len(examples.targets)} targets"
                )
            if isinstance(examples, TensorExamples):
                _check_inputs(examples, where)
        if len(self.train.targets) == 0:
            raise ValueError(f"data set {self.name} has no training examples")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"data set {self.name}: {len(self.class_names)} class names for"
                f" {self.num_classes} classes"
            )


def check_targets(targets: Tensor, num_classes: int, where: str) -> None:
    """See to it that every target is the number of a class.

    Args:
        targets: To be int64 ``[N]``, in ``[0, K)``.
        num_classes: ``K``.
        where: Begins the text of an error.

    Raises:
        TypeError: If they are no int64 tensor.
        ValueError: If they have more than one dimension, or one is out of range.
    """
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"{where}: targets must be a tensor of int64, got {got}; try .long()")
    if targets.dim() != 1:
        raise ValueError(
            f"{where}: targets must be one class number per example, shape (N,); got"
            f" {tuple(targets.shape)}"
        )
    if len(targets) and (targets.min() < 0 or targets.max() >= num_classes):
        raise ValueError(
            f"{where}: num_classes is {num_classes}, so targets must lie in [0, {num_classes - 1}];"
            f" they go from {targets.min()} to {targets.max()}"
        )


def check_finite(values: Tensor, where: str) -> None:
    """Raise ValueError if a value is NaN or infinite.

    A sum is not finite if a value is not, and takes no memory; only then every value is looked at.
    """
    for rows in values.split(4096):  # type: ignore[no-untyped-call]
        if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            raise ValueError(f"{where}: inputs hold NaN or infinity")


def _check_inputs(examples: TensorExamples, where: str) -> None:
    inputs = examples.inputs
    if not isinstance(inputs, Tensor) or inputs.dtype not in (torch.float32, torch.uint8):
        got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(
            f"{where}: inputs must be a tensor of float32, or of uint8 for images, got {got}"
        )
    if len(inputs) != len(examples.targets):
        raise ValueError(f"{where}: {len(inputs)} inputs for {len(examples.targets)} targets")
    if inputs.dtype == torch.uint8:
        _check_images(inputs, where)
    else:
        check_finite(inputs, where)


def _check_images(inputs: Tensor, where: str) -> None:
    """Bytes are scaled as images, so images they must be, channels before rows and columns."""
    shape = tuple(inputs.shape)
    if len(shape) != 4:
        raise ValueError(f"{where}: uint8 inputs must be images of shape (N, C, H, W), got {shape}")
    if shape[3] in (1, 3, 4) and shape[1] > 4:
        raise ValueError(
            f"{where}: uint8 images must have the shape (N, C, H, W); {shape} looks like"
            " (N, H, W, C), which inputs.permute(0, 3, 1, 2) turns round"
        )


class Batch(NamedTuple):
    """Inputs with targets; ``tasks`` is None unless the scenario tells task labels.

    Attributes:
        inputs: ``[n, ...]``.
        targets: Classes, ``[n]``.
        tasks: Experience every example belongs to, ``[n]``.
    """

    inputs: Inputs
    targets: Tensor
    tasks: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one client holds of one experience.

    Attributes:
        inputs: ``[n, ...]``, already normalised and transformed.
        targets: ``[n]``.
        tasks: Task label of every example, ``[n]``, or None.
        indices: Where the examples lie in the data set's training or test part, ``[n]``.
    """

    inputs: Tensor
    targets: Tensor
    tasks: Tensor | None
    indices: Indices

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that the inputs take, in bytes."""
        return self.inputs.numel() * self.inputs.element_size()

    def batches(self, batch_size: int, rng: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches in random order, or in the stored order without a generator.

        Args:
            batch_size: Examples a batch, the last one may be smaller; ``0`` is one full batch.
            rng: Draws the order; None keeps the stored order.
        """
        n = len(self)
        size = batch_size or max(n, 1)
        if rng is None:
            inputs, targets, tasks = self.inputs, self.targets, self.tasks
        else:
            order = torch.randperm(n, generator=rng)
            inputs, targets = self.inputs[order], self.targets[order]
            tasks = None if self.tasks is None else self.tasks[order]
        for i in range(0, n, size):
            part = slice(i, i + size)
            yield Batch(inputs[part], targets[part], None if tasks is None else tasks[part])
