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
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    class_names: tuple[str, ...] = ()


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
