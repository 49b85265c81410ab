import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scenarios.datasets import cifar10, cifar100, digits, fashion_mnist, mnist
from scenarios.omniglot import omniglot
from scenarios.tiny_imagenet import tiny_imagenet


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No data anywhere but below this folder, and no download."""
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def sample(examples):
    return examples.take(np.arange(0, len(examples.targets), 10))


def test_digits_are_split_by_class_and_by_seed():
    data = digits()
    assert len(data.train.targets) + len(data.test.targets) == 1797
    share = torch.bincount(data.test.targets) / (
        torch.bincount(data.test.targets) + torch.bincount(data.train.targets)
    )
    assert torch.allclose(share, torch.full((10,), 0.3), atol=0.005)
    images = data.train.take(np.arange(100))
    assert images.shape == (100, 1, 8, 8)
    assert images.min() == 0.0
    assert images.max() == 1.0
    everything = np.arange(len(data.train.targets))
    assert torch.equal(digits().train.take(everything), data.train.take(everything))
    other = digits(split_seed=1).train.take(everything)
    assert not torch.equal(other, data.train.take(everything))


def test_digits_of_both_parts_do_not_overlap():
    data = digits(test_fraction=0.5)
    assert len(data.test.targets) == pytest.approx(898, abs=5)
    with pytest.raises(ValueError, match="test_fraction"):
        digits(test_fraction=1.0)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (mnist, "torchvision/MNIST/raw/train-images-idx3-ubyte"),
        (fashion_mnist, "torchvision/FashionMNIST/raw/train-images-idx3-ubyte"),
        (cifar10, "torchvision/cifar-10-batches-py"),
        (cifar100, "torchvision/cifar-100-python"),
        (omniglot, "omniglot/omniglot_105.npz"),
        (tiny_imagenet, "tiny-imagenet-200"),
    ],
)
def test_missing_data_is_one_line_that_says_what_to_do(make, place, empty):
    with pytest.raises(FileNotFoundError) as caught:
        make(root=str(empty / "data"), download=False)
    message = str(caught.value)
    assert "\n" not in message
    assert str(empty / "data") in message
    assert f"set FEDSIM_DATA to a folder that holds {place}" in message


def write_mnist(folder, ending=""):
    folder.mkdir(parents=True)
    for split, n in (("train", 6), ("t10k", 3)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            header = struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape)
            values = np.arange(int(np.prod(shape))) % (256 if "images" in kind else 10)
            path = folder / f"{split}-{kind}-ubyte{ending}"
            path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize("layout", ["torchvision/MNIST/raw", "MNIST/raw"])
def test_mnist_reads_torchvisions_layout(layout, empty):
    write_mnist(empty / "data" / layout)
    data = mnist(root=str(empty / "data"), download=False)
    assert data.train.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.test.inputs.shape == (3, 1, 28, 28)
    first = data.train.take(np.array([0]))[0, 0, 0, :2]
    assert torch.allclose(first, (torch.tensor([0.0, 1 / 255]) - 0.1307) / 0.3081)


def test_half_a_file_is_one_line_naming_it(empty):
    folder = empty / "data" / "MNIST" / "raw"
    write_mnist(folder)
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte is damaged or cut short"):
        mnist(root=str(empty / "data"), download=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte is missing"):
        mnist(root=str(empty / "data"), download=False)


def test_damaged_cifar_is_one_line_naming_the_folder(empty):
    (empty / "data" / "cifar-100-python").mkdir(parents=True)
    (empty / "data" / "cifar-100-python" / "train").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cifar-100-python is damaged") as caught:
        cifar100(root=str(empty / "data"), download=False)
    assert "\n" not in str(caught.value)


def write_drawings(folder):
    """Two alphabets with two and one characters, drawn by 20 people."""
    for alphabet, characters in (("Aa", 2), ("Bb", 1)):
        for c in range(characters):
            place = folder / alphabet / f"character0{c + 1}"
            place.mkdir(parents=True)
            for drawer in range(1, 21):
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[: 5 * drawer] = 0
                Image.fromarray(pixels).convert("1").save(place / f"0001_{drawer:02d}.png")


@pytest.mark.parametrize("groups", ["alphabet", "drawer"])
def test_omniglot_reads_torchvisions_layout(groups, empty):
    write_drawings(empty / "data" / "omniglot-py" / "images_background")
    data = omniglot(groups=groups, image_size=21, root=str(empty / "data"), download=False)
    assert data.class_names == ("Aa/character01", "Aa/character02", "Bb/character01")
    assert torch.bincount(data.train.targets).tolist() == [15, 15, 15]
    assert torch.bincount(data.test.targets).tolist() == [5, 5, 5]
    assert data.train.inputs.shape == (45, 1, 21, 21)
    groups_seen = torch.cat([data.train.groups, data.test.groups]).unique()
    assert len(groups_seen) == (2 if groups == "alphabet" else 40)
    ink = torch.cat([data.train.inputs, data.test.inputs]).float().div(255).mean((1, 2, 3))
    expected = torch.arange(1, 21).repeat(3) * 5 / 105  # ink is bright
    assert torch.allclose(ink.sort().values, expected.sort().values, atol=1e-2)


def write_tiny_imagenet(folder):
    image = Image.fromarray(np.full((64, 64, 3), 100, np.uint8))
    for name in ("n02", "n01"):
        place = folder / "train" / name / "images"
        place.mkdir(parents=True)
        for i in range(3):
            image.save(place / f"{name}_{i}.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    rows = []
    for i, name in enumerate(("n02", "n01", "n02")):
        image.save(folder / "val" / "images" / f"val_{i}.JPEG")
        rows.append(f"val_{i}.JPEG\t{name}\t0\t0\t1\t1")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows))


def test_tiny_imagenet_reads_the_official_layout(empty):
    write_tiny_imagenet(empty / "data" / "tiny-imagenet-200")
    data = tiny_imagenet(root=str(empty / "data"), download=False)
    assert data.class_names == ("n01", "n02")
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.targets.tolist() == [1, 0, 1]
    assert data.train.inputs.shape == (6, 3, 64, 64)


def test_arguments_are_checked_before_reading():
    for options in (
        {"part": "all"},
        {"groups": "person"},
        {"image_size": 106},
        {"train_per_class": 20},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            omniglot(**options)
    with pytest.raises(ValueError, match="variant"):
        tiny_imagenet(variant="small")


def test_importing_the_loaders_is_fast():
    code = (
        "import sys, scenarios.datasets, scenarios.omniglot, scenarios.tiny_imagenet;"
        "import scenarios.avalanche;"
        "print([m for m in ('torchvision', 'avalanche', 'sklearn', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.data
@pytest.mark.parametrize(
    ("make", "shape", "num_train", "num_test", "num_classes"),
    [
        (mnist, (1, 28, 28), 60_000, 10_000, 10),
        (cifar10, (3, 32, 32), 50_000, 10_000, 10),
        (tiny_imagenet, (3, 32, 32), 50_000, 5_000, 100),
        (omniglot, (1, 28, 28), 964 * 15, 964 * 5, 964),
    ],
)
def test_sizes_and_moments_of_real_data(make, shape, num_train, num_test, num_classes):
    data = make(download=False)
    assert len(data.train.targets) == num_train
    assert len(data.test.targets) == num_test
    assert data.num_classes == num_classes == len(data.class_names)
    assert data.train.inputs.dtype == torch.uint8
    inputs = sample(data.train)
    assert inputs.shape[1:] == shape
    dims = [0, *range(2, inputs.dim())]
    assert torch.allclose(inputs.mean(dims), torch.zeros(shape[0]), atol=0.05)
    assert torch.allclose(inputs.std(dims), torch.ones(shape[0]), atol=0.05)
    assert len(torch.bincount(data.test.targets)) == num_classes


@pytest.mark.data
def test_mnist_has_its_published_classes():
    counts = torch.bincount(mnist(download=False).train.targets).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.data
def test_both_parts_of_omniglot_are_numbered_through():
    data = omniglot(part="both", groups="alphabet", download=False)
    assert data.num_classes == 1623
    assert len(data.train.groups.unique()) == 50
    alphabets = [set(data.train.groups[data.train.targets == c].tolist()) for c in (0, 963, 964)]
    assert alphabets == [{0}, {29}, {30}]
