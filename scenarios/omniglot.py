"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from fedsim.data import Dataset, Indices, TensorExamples
from fedsim.seeding import numpy_generator
from scenarios.cache import Array, cached
from scenarios.files import UNREADABLE, read_npz
from scenarios.locate import damaged, locate

SIDE, DRAWERS = 105, 20
MEAN, STD = (0.078,), (0.225,)  # of all drawings at 28x28
Part = Literal["background", "evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawings:
    """One part of the data: ``images`` uint8 ``[N, 1, S, S]``, the rest int64 ``[N]`` or names."""

    images: Array
    alphabet: Indices
    character: Indices
    drawer: Indices
    alphabet_names: list[str]
    character_names: list[str]


def omniglot(
    *,
    part: Literal["background", "evaluation", "both"] = "background",
    image_size: int = 28,
    groups: Literal["alphabet", "drawer"] = "alphabet",
    train_per_class: int = 15,
    split_seed: int = 0,
    root: str = "data",
    download: bool = True,
) -> Dataset:
    """Classes are characters; ink is bright on a dark ground, as in MNIST.

    Read from ``omniglot/omniglot_105.npz``, else from the PNG files in torchvision's layout
    (``omniglot-py/images_background/...``).

    Args:
        part: ``background`` (964 characters, 30 alphabets), ``evaluation`` (659, 20) or both.
        image_size: Side of the images in pixels, averaged down from 105.
        groups: Natural owner of a drawing: its alphabet, or the person who drew it (each alphabet
            was drawn by 20 people of its own).
        train_per_class: Drawings of every character for training, of 20; the rest is for testing.
        split_seed: Chooses the training drawings; independent of the run's seed.
        root: Data folder, see :func:`locate`.
        download: Let torchvision fetch the data where it is missing.

    Raises:
        ValueError: If an argument is out of range or a file is damaged.
    """
    if part not in ("background", "evaluation", "both"):
        raise ValueError(f"part must be background, evaluation or both, got {part!r}")
    if groups not in ("alphabet", "drawer"):
        raise ValueError(f"groups must be alphabet or drawer, got {groups!r}")
    if not 1 <= image_size <= SIDE:
        raise ValueError(f"image_size must lie in [1, {SIDE}], got {image_size}")
    if not 1 <= train_per_class < DRAWERS:
        raise ValueError(f"train_per_class must lie in [1, {DRAWERS - 1}], got {train_per_class}")
    parts: list[Part] = ["background", "evaluation"] if part == "both" else [part]
    drawings = _joined([_read(p, image_size, root, download) for p in parts])
    owners = drawings.alphabet
    if groups == "drawer":
        owners = drawings.alphabet * DRAWERS + drawings.drawer - 1
    is_train = _chosen(drawings.character, train_per_class, split_seed)

    def examples(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> TensorExamples:
        return TensorExamples(
            inputs=torch.from_numpy(drawings.images[mask]),
            targets=torch.from_numpy(drawings.character[mask]),
            groups=torch.from_numpy(owners[mask]),
            mean=MEAN,
            std=STD,
        )

    return Dataset(
        name="omniglot",
        train=examples(is_train),
        test=examples(~is_train),
        num_classes=len(drawings.character_names),
        class_names=tuple(drawings.character_names),
    )


def _chosen(
    characters: Indices, per_class: int, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mask of as many random examples of every class as asked for."""
    shuffled = numpy_generator(seed, "omniglot").permutation(len(characters))
    order = shuffled[np.argsort(characters[shuffled], kind="stable")]
    counts = np.bincount(characters)
    ranks = np.arange(len(order)) - (np.cumsum(counts) - counts)[characters[order]]
    mask = np.zeros(len(order), np.bool_)
    mask[order[ranks < per_class]] = True
    return mask


def _joined(parts: list[_Drawings]) -> _Drawings:
    """Parts put behind each other, with characters and alphabets numbered through."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    return _Drawings(
        images=np.concatenate((first.images, second.images)),
        alphabet=np.concatenate((first.alphabet, second.alphabet + len(first.alphabet_names))),
        character=np.concatenate((first.character, second.character + len(first.character_names))),
        drawer=np.concatenate((first.drawer, second.drawer)),
        alphabet_names=first.alphabet_names + second.alphabet_names,
        character_names=first.character_names + second.character_names,
    )


def _read(part: Part, image_size: int, root: str, download: bool) -> _Drawings:
    """One part from either layout."""
    folder = f"omniglot-py/images_{part}"

    def fetch(target: Path) -> None:
        import torchvision

        is_background = part == "background"
        torchvision.datasets.Omniglot(target / "torchvision", is_background, download=True)

    found = locate(
        name=f"omniglot ({part})",
        wanted=["omniglot/omniglot_105.npz", f"torchvision/{folder}", folder],
        root=root,
        origin="torchvision.datasets.Omniglot",
        download=fetch if download else None,
    )
    name = f"omniglot-{part}-{image_size}"
    if found.suffix == ".npz":
        return _read_npz(found, part, image_size, name)
    return _read_folder(found, image_size, name)


def _read_npz(path: Path, part: Part, image_size: int, name: str) -> _Drawings:
    keys = ("alphabet", "character", "drawer", "alphabet_names", "character_names")
    alphabet, character, drawer, *names = read_npz(path, *(f"{part}_{key}" for key in keys))

    def make() -> Array:
        (packed,) = read_npz(path, f"{part}_images")
        ink = np.unpackbits(packed, axis=1, count=SIDE * SIDE)
        return _shrink(ink.reshape(-1, SIDE, SIDE), image_size)

    return _Drawings(
        images=cached(name, path, make),
        alphabet=alphabet.astype(np.int64),
        character=character.astype(np.int64),
        drawer=drawer.astype(np.int64),
        alphabet_names=[str(n) for n in names[0]],
        character_names=[str(n) for n in names[1]],
    )


def _read_folder(folder: Path, image_size: int, name: str) -> _Drawings:
    """PNG files ``alphabet/character/NNNN_DD.png`` with drawer DD, in sorted order."""
    files = sorted(folder.glob("*/*/*.png"))
    characters = sorted({f"{f.parent.parent.name}/{f.parent.name}" for f in files})
    alphabets = sorted({f.parent.parent.name for f in files})
    character_of = {c: i for i, c in enumerate(characters)}
    alphabet_of = {a: i for i, a in enumerate(alphabets)}

    def make() -> Array:
        from PIL import Image

        ink = np.empty((len(files), SIDE, SIDE), np.uint8)
        for i, file in enumerate(files):
            try:
                with Image.open(file) as image:
                    ink[i] = np.asarray(image.convert("L")) < 128
            except UNREADABLE as error:
                raise damaged(file, error) from error
        return _shrink(ink, image_size)

    if not files:
        raise damaged(folder, "no PNG files in it")
    return _Drawings(
        images=cached(f"{name}-png", folder, make),
        alphabet=np.array([alphabet_of[f.parent.parent.name] for f in files]),
        character=np.array(
            [character_of[f"{f.parent.parent.name}/{f.parent.name}"] for f in files]
        ),
        drawer=np.array([int(f.stem.split("_")[1]) for f in files]),
        alphabet_names=alphabets,
        character_names=characters,
    )


def _shrink(ink: Array, image_size: int) -> Array:
    """Bits ``[N, 105, 105]`` as grey images ``[N, 1, S, S]``, uint8, by averaging areas."""
    chunks = []
    for start in range(0, len(ink), 1000):  # floats of all drawings would take gigabytes
        chunk = torch.from_numpy(ink[start : start + 1000]).float().unsqueeze(1)
        small = F.interpolate(chunk, size=(image_size, image_size), mode="area")
        chunks.append(small.mul_(255.0).round_().to(torch.uint8))
    return torch.cat(chunks).numpy()
