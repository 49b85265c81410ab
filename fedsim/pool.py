"""Images in memory from which episodes are drawn."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.data import TensorExamples


class ImagePool:
    """Images in memory from which episodes are drawn.

    Args:
        examples: Parts of a data set, taken together.
        num_classes: Only classes ``0..num_classes-1`` take part; None takes all.
        per_class: Images that an episode needs of a class; classes with fewer are left out.
        rotations: Whether every class occurs in four orientations.

    Raises:
        ValueError: If rotated images are not square, or no class has enough images.
    """

    def __init__(
        self,
        *,
        examples: Sequence[TensorExamples],
        num_classes: int | None,
        per_class: int,
        rotations: bool,
    ) -> None:
        self.mean, self.std = examples[0].mean, examples[0].std
        inputs = torch.cat([part.inputs for part in examples])
        targets = torch.cat([part.targets for part in examples])
        if rotations and (inputs.dim() != 4 or inputs.shape[-1] != inputs.shape[-2]):
            raise ValueError(f"rotations need square images, got shape {tuple(inputs.shape[1:])}")
        order = torch.argsort(targets, stable=True)
        sizes = torch.bincount(targets)
        begins = sizes.cumsum(0) - sizes
        enough = sizes >= per_class
        if num_classes is not None:
            enough &= torch.arange(len(sizes)) < num_classes
        if not bool(enough.any()):
            raise ValueError(f"no class has the {per_class} images that an episode needs")
        self._inputs = inputs[order]
        self._sizes, self._begins = sizes[enough], begins[enough]
        self._per_class = per_class
        self._turns = 4 if rotations else 1

    def __len__(self) -> int:
        """Classes to choose from, orientations counted."""
        return len(self._sizes) * self._turns

    def draw(self, ways: int, rng: torch.Generator) -> Tensor:
        """Images of distinct classes, ``[ways, per_class, C, H, W]``, in the pool's own form."""
        chosen = torch.randperm(len(self), generator=rng)[:ways]
        rows, turns = chosen // self._turns, chosen % self._turns
        sizes = self._sizes[rows]
        keys = torch.rand(ways, int(sizes.max()), generator=rng)
        keys.masked_fill_(torch.arange(keys.shape[1]) >= sizes.unsqueeze(1), 2.0)
        places = keys.topk(self._per_class, dim=1, largest=False).indices
        images = self._inputs[self._begins[rows].unsqueeze(1) + places]
        for turn in range(1, self._turns):
            same = turns == turn
            images[same] = images[same].rot90(turn, (-2, -1))
        return images

    def prepare(self, images: Tensor) -> Tensor:
        """Images flattened to a batch and normalised as the data set's are."""
        batch = images.flatten(0, 1)
        indices = np.arange(len(batch))
        part = TensorExamples(inputs=batch, targets=batch, mean=self.mean, std=self.std)
        return part.take(indices)
