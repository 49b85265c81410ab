"""Image data sets: found in FEDSIM_DATA or the data folder, else downloaded by their own loader."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset, TensorExamples
from fedsim.seeding import numpy_generator
from scenarios.cache import Array
from scenarios.files import UNREADABLE, read_idx, read_jpeg_npz, read_npz
from scenarios.locate import damaged, locate

FASHION = (
    "top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)


def digits(*, test_fraction: float = 0.3, split_seed: int = 0) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits, 8x8, bundled with it: no file is needed.

    Pixels are floats in ``[0, 1]``.

    Args:
        test_fraction: Share of every class that goes to the test part, in ``(0, 1)``.
        split_seed: Chooses the test examples; independent of the run's seed.

    Raises:
        ValueError: If ``test_fraction`` is out of range.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie in (0, 1), got {test_fraction}")
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().div_(16.0).unsqueeze(1)
    targets = torch.from_numpy(data.target).long()
    rng = numpy_generator(split_seed, "digits")
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(10):
        members = np.flatnonzero(data.target == digit)
        is_test[rng.permutation(members)[: round(test_fraction * len(members))]] = True
    return Dataset(
        name="digits",
        train=TensorExamples(inputs=images[~is_test], targets=targets[~is_test]),
        test=TensorExamples(inputs=images[is_test], targets=targets[is_test]),
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def mnist(*, root: str = "data", download: bool = True) -> Dataset:
    """MNIST: 60,000 + 10,000 grey images 28x28 of 10 digits.

    Args:
        root: Data folder, see :func:`locate`.
        download: Let torchvision fetch the data where it is missing.
    """
    return _idx_dataset(
        "mnist", "MNIST", root, download, (0.1307, 0.3081), [str(d) for d in range(10)]
    )


def fashion_mnist(*, root: str = "data", download: bool = True) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 grey images 28x28 of 10 kinds of clothes.

    Args:
        root: Data folder, see :func:`locate`.
        download: Let torchvision fetch the data where it is missing.
    """
    return _idx_dataset("fashion_mnist", "FashionMNIST", root, download, (0.2860, 0.3530), FASHION)


def cifar10(*, root: str = "data", download: bool = True) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 colour images 32x32 of 10 classes.

    Takes the original pixels where torchvision's files are there; else the same images
    recompressed as JPEG (``cifar10_jpg/train.npz``), under the name ``cifar10_jpeg``.

    Args:
        root: Data folder, see :func:`locate`.
        download: Let torchvision fetch the data where it is missing.
    """
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    wanted = ["torchvision/cifar-10-batches-py", "cifar-10-batches-py", "cifar10_jpg/train.npz"]
    found = _locate("cifar10", "CIFAR10", wanted, root, download)
    if found.name != "train.npz":
        return _cifar(found, "cifar10", "CIFAR10", mean, std)
    (names,) = read_npz(found, "classes")
    return jpeg_dataset("cifar10_jpeg", found, found.with_name("test.npz"), mean, std, names)


def cifar100(*, root: str = "data", download: bool = True) -> Dataset:
    """CIFAR-100: 50,000 + 10,000 colour images 32x32 of 100 classes.

    Args:
        root: Data folder, see :func:`locate`.
        download: Let torchvision fetch the data where it is missing.
    """
    wanted = ["torchvision/cifar-100-python", "cifar-100-python"]
    found = _locate("cifar100", "CIFAR100", wanted, root, download)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _cifar(found, "cifar100", "CIFAR100", mean, std)


def _locate(name: str, loader: str, wanted: Sequence[str], root: str, download: bool) -> Path:
    """Where a torchvision data set lies; downloads go to the folder ``torchvision``."""

    def fetch(folder: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, loader)(root=folder / "torchvision", download=True)

    return locate(
        name=name,
        wanted=wanted,
        root=root,
        origin=f"torchvision.datasets.{loader}",
        download=fetch if download else None,
    )


def _idx_dataset(
    name: str,
    loader: str,
    root: str,
    download: bool,
    moments: tuple[float, float],
    class_names: Sequence[str],
) -> Dataset:
    """A data set in MNIST's format."""
    first = "train-images-idx3-ubyte"
    wanted = [f"torchvision/{loader}/raw", f"{loader}/raw"]
    paths = [f"{folder}/{first}{ending}" for folder in wanted for ending in ("", ".gz")]
    found = _locate(name, loader, paths, root, download)

    def examples(split: str) -> TensorExamples:
        ending = ".gz" if found.suffix == ".gz" else ""
        images, labels = (
            found.with_name(f"{split}-{kind}-ubyte{ending}")
            for kind in ("images-idx3", "labels-idx1")
        )
        return TensorExamples(
            inputs=torch.from_numpy(read_idx(existing(images))).unsqueeze(1),
            targets=torch.from_numpy(read_idx(existing(labels))).long(),
            mean=moments[:1],
            std=moments[1:],
        )

    return Dataset(
        name=name,
        train=examples("train"),
        test=examples("t10k"),
        num_classes=len(class_names),
        class_names=tuple(class_names),
    )


def _cifar(
    folder: Path, name: str, loader: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    """CIFAR in torchvision's layout."""
    import torchvision

    def part(train: bool) -> Any:
        try:
            return getattr(torchvision.datasets, loader)(root=folder.parent, train=train)
        except (*UNREADABLE, RuntimeError) as error:
            raise damaged(folder, error) from error

    parts = [part(True), part(False)]
    train, test = (
        TensorExamples(
            inputs=torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(),
            targets=torch.tensor(p.targets),
            mean=mean,
            std=std,
        )
        for p in parts
    )
    names = tuple(parts[0].classes)
    return Dataset(name=name, train=train, test=test, num_classes=len(names), class_names=names)


def jpeg_dataset(
    name: str,
    train: Path,
    test: Path,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    names: Array,
) -> Dataset:
    """A data set of JPEG files packed into npz files, see :func:`read_jpeg_npz`."""

    def examples(path: Path) -> TensorExamples:
        (labels,) = read_npz(existing(path), "labels")
        images: Tensor = torch.from_numpy(read_jpeg_npz(f"{name}-{path.stem}", path))
        targets = torch.from_numpy(labels.astype(np.int64))
        return TensorExamples(inputs=images, targets=targets, mean=mean, std=std)

    return Dataset(
        name=name,
        train=examples(train),
        test=examples(test),
        num_classes=len(names),
        class_names=tuple(str(n) for n in names),
    )


def existing(path: Path) -> Path:
    """The path, which must exist.

    Raises:
        FileNotFoundError: If it does not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing next to the data set's other files")
    return path
