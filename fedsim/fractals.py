"""Labelled pictures at no cost: fractal images as a deterministic torch data set."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedsim.functional.fractal_images import (
    background,
    blur,
    colour,
    grey,
    hit_counts,
    place,
    plasma,
    turn,
)
from fedsim.functional.fractals import (
    BURN_IN,
    Systems,
    attractor,
    jitter_system,
    join,
    sample_system,
)
from fedsim.seeding import derive, generator

Mode = Literal["multiclass", "multi_instance"]
Split = Literal["train", "test"]
MOST_INSTANCES = 5
RENDER_BATCH = 64  # images rendered side by side
WALKERS = 250  # side by side; each takes points / WALKERS steps after its burn-in
_LOOKS = 3 + 3 + 3 + 7  # uniform numbers of one fractal: colour, turns, place, grey level and spare
_SCENE = 16  # uniform numbers of one image: background, turns, blur, number of fractals


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How fractals are drawn.

    Attributes:
        image_size: Side in pixels.
        points: Points of an attractor.
        coloured: Coloured fractals on a coloured landscape; else grey ones on black, one channel.
        patches: Stamp a random binary 3x3 patch, one per fractal, at every point.
    """

    image_size: int = 32
    points: int = 5000
    coloured: bool = True
    patches: bool = False

    def __post_init__(self) -> None:
        if min(self.image_size, self.points) < 1:
            raise ValueError(
                f"image_size and points must be at least 1, got {self.image_size} and {self.points}"
            )


class Fractals(Dataset[tuple[Tensor, Tensor]]):
    """Fractal images; one iterated function system is one class.

    An image depends on ``(seed, split, index, epoch)`` only, so every process, worker and order
    gives the same bytes. Grey fractals are rendered on first use and kept (``image_size^2`` bytes
    each); colours, places and backgrounds are put on at each use.

    Args:
        seed: Of everything.
        num_classes: Systems ``K``.
        per_class: Grey fractals of each; the data set has ``num_classes * per_class`` images.
        mode: ``multiclass``: one fractal fills the image, its system jittered per image, and the
            target is the class. ``multi_instance``: 1 to 5 small fractals of any class, and the
            target says which classes are there, ``[K]``.
        rendering: How they are drawn.
        split: ``test`` renders the same systems with other draws.
        device: Where images are drawn. Random numbers come from the CPU, so that devices agree up
            to rounding.

    Raises:
        ValueError: If a number is out of range or ``mode`` is none of the two.

    Source:
        Anderson and Farrell, Improving Fractal Pre-training, WACV 2022, arXiv:2110.03091. The label
        is ``index // per_class``, which the authors' errata correct; points come from many walkers
        side by side; the landscape wraps around.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_classes: int = 100,
        per_class: int = 200,
        mode: Mode = "multi_instance",
        rendering: Rendering | None = None,
        split: Split = "train",
        device: str = "cpu",
    ) -> None:
        if min(num_classes, per_class) < 1:
            raise ValueError(
                f"num_classes and per_class must be at least 1, got {num_classes} and {per_class}"
            )
        if mode not in ("multiclass", "multi_instance"):
            raise ValueError(f"mode must be multiclass or multi_instance, got {mode!r}")
        self.num_classes, self.per_class, self.mode = num_classes, per_class, mode
        self.rendering = rendering or Rendering()
        self.channels = 3 if self.rendering.coloured else 1
        self._seed, self._device = seed, device
        self._split: Split = split
        self._steps = BURN_IN + -(-self.rendering.points // WALKERS)
        self._systems = join(
            [sample_system(generator(seed, "fractal system", c)) for c in range(num_classes)]
        )
        size, side = num_classes * per_class, self.rendering.image_size
        self._greys = torch.zeros(size, side, side, dtype=torch.uint8, device=device)
        self._rendered = torch.zeros(size, dtype=torch.bool)

    def __len__(self) -> int:
        return self.num_classes * self.per_class

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}), got {index}")
        images, targets = self.batch(torch.tensor([index]))
        return images[0], targets[0]

    def batch(self, indices: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images and targets of several indices at once.

        Args:
            indices: In ``[0, len(self))``, ``[n]``, on the CPU.
            epoch: Other colours, places and backgrounds of the same fractals.

        Returns:
            Images ``[n, 3 or 1, s, s]`` in ``[0, 1]``, and classes ``[n]`` or presence ``[n, K]``.
        """
        count = MOST_INSTANCES if self.mode == "multi_instance" else 1
        draws = torch.stack(
            [
                torch.rand(
                    _SCENE + count * _LOOKS,
                    generator=self._generator("scene", int(i), epoch),
                )
                for i in indices
            ]
        )
        instances = (draws[:, 12] * MOST_INSTANCES).long() + 1
        members = (draws[:, _SCENE + 15 :: _LOOKS] * len(self)).long()
        draws = draws.to(self._device)
        scene, looks = draws[:, :_SCENE], draws[:, _SCENE:].view(-1, count, _LOOKS)
        images = self._backgrounds(indices, epoch, scene)
        if self.mode == "multiclass":
            pictures = self.greys(indices)
            images = turn(self._paste(images, pictures, looks[:, 0]), scene[:, 7:10])
            labels = (indices // self.per_class).to(self._device)
            return blur(images, scene[:, 10:12]), labels
        present = torch.zeros(len(indices), self.num_classes)
        for j in range(MOST_INSTANCES):
            chosen, shown = members[:, j], j < instances
            pictures = place(turn(self.greys(chosen), looks[:, j, 3:6]), looks[:, j, 6:9])
            visible = shown.to(self._device)[:, None, None]
            images = self._paste(images, pictures * visible, looks[:, j])
            # one that lies wholly under later ones counts as present, as in the paper
            present[shown, chosen[shown] // self.per_class] = 1.0
        return blur(images, scene[:, 10:12]), present.to(self._device)

    def singles(self) -> "Fractals":
        """The same systems, one to an image: the data set with mode ``multiclass``."""
        return Fractals(
            seed=self._seed,
            num_classes=self.num_classes,
            per_class=self.per_class,
            mode="multiclass",
            rendering=self.rendering,
            split=self._split,
            device=self._device,
        )

    def greys(self, indices: Tensor) -> Tensor:
        """Grey fractals ``[n, s, s]`` in ``[0, 1]``, those not yet rendered being rendered."""
        missing = torch.unique(indices[~self._rendered[indices]])
        for i in range(0, len(missing), RENDER_BATCH):
            part = missing[i : i + RENDER_BATCH]
            self._greys[part] = self._render(part)
            self._rendered[part] = True
        return self._greys[indices].float() / 255.0

    def _render(self, indices: Tensor) -> Tensor:
        """Grey fractals as bytes, ``[n, s, s]``; a pixel that was hit is never 0."""
        systems, walks, windows, patches = [], [], [], []
        for i in indices.tolist():
            rng = self._generator("render", i)
            system = self._systems.pick(torch.tensor([i // self.per_class]))
            systems.append(jitter_system(system, rng) if self.mode == "multiclass" else system)
            walks.append(torch.rand(self._steps, WALKERS, generator=rng))
            windows.append(torch.rand(4, generator=rng))
            patches.append(torch.randint(2, (3, 3), generator=rng).float())
        points = attractor(join(systems).to(self._device), torch.stack(walks).to(self._device))
        window = torch.stack(windows).to(self._device) if self.mode == "multiclass" else None
        counts = hit_counts(points, self.rendering.image_size, window)
        stamps = torch.stack(patches).to(self._device) if self.rendering.patches else None
        pictures = grey(counts, stamps)
        return (pictures * 255.0).ceil().to(torch.uint8)

    def _backgrounds(self, indices: Tensor, epoch: int, scene: Tensor) -> Tensor:
        """Landscapes ``[n, 3, s, s]``, or black ``[n, 1, s, s]`` for grey images."""
        side = self.rendering.image_size
        if not self.rendering.coloured:
            return torch.zeros(len(indices), 1, side, side, device=self._device)
        grid = 1 << (side - 1).bit_length()
        noise = torch.stack(
            [
                torch.randn(grid, grid, generator=self._generator("landscape", int(i), epoch))
                for i in indices
            ]
        )
        heights = plasma(noise.to(self._device), 0.4 + 0.4 * scene[:, 0])[:, :side, :side]
        return background(heights, scene[:, 1:7])

    def _paste(self, images: Tensor, pictures: Tensor, looks: Tensor) -> Tensor:
        """Fractals over the images, where a point fell."""
        hit = (pictures > 0)[:, None]
        if self.rendering.coloured:
            return torch.where(hit, colour(pictures, looks[:, :3]), images)
        level = 0.5 + 0.5 * looks[:, 9, None, None]
        return torch.where(hit, (level * (0.4 + 0.6 * pictures))[:, None], images)

    def _generator(self, purpose: str, index: int, epoch: int = 0) -> torch.Generator:
        seed = derive(self._seed, "fractal", purpose, self._split, index, epoch)
        return torch.Generator().manual_seed(seed)

    @property
    def systems(self) -> Systems:
        """The systems of all classes."""
        return self._systems
