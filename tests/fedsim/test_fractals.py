import hashlib
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from fedsim.fractals import Fractals, Rendering

SMALL = Rendering(image_size=16, points=1000)


def fractals(**more):
    settings = {"seed": 0, "num_classes": 4, "per_class": 3, "rendering": SMALL, **more}
    return Fractals(**settings)


@pytest.mark.parametrize("mode", ["multiclass", "multi_instance"])
def test_an_image_is_the_same_alone_in_any_order_and_in_a_batch(mode):
    whole, targets = fractals(mode=mode).batch(torch.arange(12))
    data = fractals(mode=mode)
    for i in (7, 0, 11):
        image, target = data[i]
        assert torch.equal(image, whole[i])
        assert torch.equal(target, targets[i])


def test_two_processes_render_the_same_bytes():
    script = (
        "import hashlib, torch\n"
        "from fedsim.fractals import Fractals, Rendering\n"
        "for mode in ('multiclass', 'multi_instance'):\n"
        "    d = Fractals(seed=0, num_classes=4, per_class=3, mode=mode,"
        " rendering=Rendering(image_size=16, points=1000))\n"
        "    x, _ = d.batch(torch.arange(12))\n"
        "    print(hashlib.sha256(x.numpy().tobytes()).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    images, _ = fractals(mode="multiclass").batch(torch.arange(12))
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() in runs[0].stdout


def test_two_workers_do_not_repeat_each_others_images():
    data = fractals(mode="multiclass")
    loader = DataLoader(data, batch_size=3, num_workers=2)
    images = torch.cat([x for x, _ in loader])
    assert torch.equal(images, data.batch(torch.arange(12))[0])
    assert len(images.flatten(1).unique(dim=0)) == 12


def test_seeds_splits_and_epochs_give_other_images_of_the_same_classes():
    one, _ = fractals().batch(torch.arange(12))
    assert not torch.equal(one, fractals(seed=1).batch(torch.arange(12))[0])
    assert not torch.equal(one, fractals(split="test").batch(torch.arange(12))[0])
    assert not torch.equal(one, fractals().batch(torch.arange(12), epoch=1)[0])
    same, other = fractals().systems, fractals(split="test").systems
    assert torch.equal(same.matrices, other.matrices)


def test_the_label_is_the_index_by_images_per_class():
    data = fractals(mode="multiclass", num_classes=5, per_class=2)
    assert [int(data[i][1]) for i in range(len(data))] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_multi_instance_images_show_one_to_five_classes():
    data = fractals(num_classes=50, per_class=4)
    _, present = data.batch(torch.arange(200))
    numbers = present.sum(dim=1)
    assert present.shape == (200, 50)
    assert set(present.unique().tolist()) == {0.0, 1.0}
    assert int(numbers.min()) == 1
    assert int(numbers.max()) == 5
    assert float(numbers.mean()) == pytest.approx(3.0, abs=0.3)


def test_singles_are_the_same_systems_one_to_an_image():
    several = fractals(mode="multi_instance", split="test")
    images, labels = several.singles().batch(torch.arange(12))
    expected, wanted = fractals(mode="multiclass", split="test").batch(torch.arange(12))
    assert torch.equal(images, expected)
    assert torch.equal(labels, wanted)


def test_shapes_and_range():
    images, _ = fractals().batch(torch.arange(12))
    assert images.shape == (12, 3, 16, 16)
    assert bool((images >= 0).all() & (images <= 1).all())
    uncoloured = Rendering(image_size=20, points=1000, coloured=False)
    images, _ = fractals(rendering=uncoloured, mode="multiclass").batch(torch.arange(12))
    assert images.shape == (12, 1, 20, 20)
    shown = (images > 0).float().mean(dim=(1, 2, 3))
    assert bool((shown < 1).all() & (shown > 0).all())


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="per_class"):
        fractals(per_class=0)
    with pytest.raises(ValueError, match="mode must be"):
        fractals(mode="single")
    with pytest.raises(ValueError, match="points"):
        Rendering(points=0)
    with pytest.raises(IndexError):
        fractals()[12]
