"""Tiny-ImageNet: 64x64, 200 classes, or half its classes at 32x32."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedsim.data import Dataset, TensorExamples
from scenarios.cache import cached
from scenarios.datasets import existing, jpeg_dataset
from scenarios.files import UNREADABLE, decode_images, read_npz
from scenarios.locate import damaged, locate

FULL = "tiny-imagenet-200"
HALF = "tinyimagenet32_a/train.npz"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
HALF_MEAN, HALF_STD = (0.4826, 0.4510, 0.3989), (0.2501, 0.2419, 0.2565)


def tiny_imagenet(
    *,
    variant: Literal["auto", "full", "half32"] = "auto",
    root: str = "data",
    download: bool = True,
) -> Dataset:
    """Tiny-ImageNet; the validation images are the test part.

    Args:
        variant: ``full``: 100,000 + 10,000 images 64x64 of 200 classes (the folder
            ``tiny-imagenet-200``); ``half32``: 50,000 + 5,000 images 32x32 of every second class
            (``tinyimagenet32_a/*.npz``, named ``tiny_imagenet32_half``); ``auto``: whichever is
            found, ``full`` first, else ``full`` is downloaded.
        root: Data folder, see :func:`locate`.
        download: Let Avalanche fetch the full data where it is missing.

    Raises:
        ValueError: If the variant is unknown or a file is damaged.
    """
    wanted = {"full": [FULL], "half32": [HALF], "auto": [FULL, HALF]}
    if variant not in wanted:
        raise ValueError(f"variant must be auto, full or half32, got {variant!r}")
    found = locate(
        name=f"tiny_imagenet (variant {variant})",
        wanted=wanted[variant],
        root=root,
        origin="the maintainers of the half set"
        if variant == "half32"
        else "avalanche.benchmarks.datasets.TinyImagenet",
        download=_fetch if download and variant != "half32" else None,
    )
    if found.name == FULL:
        return _full(found)
    (names,) = read_npz(found, "names")
    test = found.with_name("val.npz")
    return jpeg_dataset("tiny_imagenet32_half", found, test, HALF_MEAN, HALF_STD, names)


def _fetch(folder: Path) -> None:
    from avalanche.benchmarks.datasets import TinyImagenet

    TinyImagenet(root=folder, download=True)


def _full(folder: Path) -> Dataset:
    """The data in the layout of the official archive."""
    classes = sorted(path.name for path in existing(folder / "train").iterdir() if path.is_dir())
    number = {name: i for i, name in enumerate(classes)}
    train = [
        (p, number[c]) for c in classes for p in sorted((folder / "train" / c).rglob("*.JPEG"))
    ]
    rows = existing(folder / "val" / "val_annotations.txt").read_text().splitlines()
    table = sorted(tuple(row.split("\t")[:2]) for row in rows)
    try:
        test = [(folder / "val" / "images" / file, number[name]) for file, name in table]
    except UNREADABLE as error:
        raise damaged(folder / "val" / "val_annotations.txt", error) from error
    return Dataset(
        name="tiny_imagenet",
        train=_examples("train", folder, train),
        test=_examples("val", folder, test),
        num_classes=len(classes),
        class_names=tuple(classes),
    )


def _examples(split: str, folder: Path, files: list[tuple[Path, int]]) -> TensorExamples:
    def decode() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        try:
            return decode_images([path for path, _ in files], len(files))
        except UNREADABLE as error:
            raise damaged(folder / split, error) from error

    return TensorExamples(
        inputs=torch.from_numpy(cached(f"tiny_imagenet-{split}", folder / split, decode)),
        targets=torch.tensor([target for _, target in files]),
        mean=MEAN,
        std=STD,
    )
