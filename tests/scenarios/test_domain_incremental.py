import numpy as np
import pytest
import torch

from scenarios.domain_incremental import DomainIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.shifts import Brightness, Permutation, Rotation
from scenarios.toy import toy


def make(shift, share="full", num_experiences=4, shape=(2, 5, 5), seed=0):
    return DomainIncremental(
        dataset=toy(num_classes=3, shape=shape, train_examples=60, test_examples=30),
        partition=IID(),
        order=SameOrder(),
        num_clients=3,
        num_experiences=num_experiences,
        shift=shift,
        share=share,
        seed=seed,
    )


def test_a_quarter_turn_equals_rot90():
    scenario = make(Rotation(degrees=90))
    for e in range(4):
        shard = scenario.shard(1, e, "train")
        plain = scenario.dataset.train.take(shard.indices)
        assert torch.equal(shard.inputs, torch.rot90(plain, e, dims=(-2, -1)))


def test_any_angle_agrees_with_exact_quarter_turns():
    image = torch.randn(2, 1, 8, 8)
    near = Rotation(degrees=[90.001])(image, 0, 0)
    assert torch.allclose(near, torch.rot90(image, 1, dims=(-2, -1)), atol=1e-2)
    assert torch.equal(Rotation(degrees=[0.0])(image, 0, 0), image)


def test_turning_there_and_back_keeps_a_smooth_centre():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21), indexing="ij")
    image = (x + 2 * y)[None, None]
    back = Rotation(degrees=[-30.0])(Rotation(degrees=[30.0])(image, 0, 0), 0, 0)
    assert torch.allclose(back[..., 7:14, 7:14], image[..., 7:14, 7:14], atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 5), (9,)])
def test_permutation_moves_every_pixel_and_differs_per_experience(shape):
    scenario = make(Permutation(), shape=shape)
    pixels = 25 if len(shape) == 3 else 9
    plain = scenario.dataset.train.take(scenario.indices(0, 0, "train")).view(20, -1, pixels)
    seen = []
    for e in range(4):
        moved = scenario.shard(0, e, "train").inputs.view_as(plain)
        assert torch.equal(plain.sort(-1).values, moved.sort(-1).values)
        seen.append(moved)
    assert torch.equal(seen[0], plain)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_permutation_is_the_same_for_clients_splits_and_channels():
    shift = Permutation()
    ramp = torch.arange(25.0).view(1, 1, 5, 5).expand(3, 2, 5, 5)
    moved = shift(ramp, 2, 0)
    assert torch.equal(moved[0], moved[2])
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved, shift(ramp, 2, 0))
    assert not torch.equal(moved, shift(ramp, 2, 1))


def test_brightness_adds_a_step_per_experience():
    image = torch.zeros(1, 1, 2, 2)
    assert Brightness(step=0.5)(image, 3, 0).unique().tolist() == [1.5]
    assert Brightness(step=[0.0, -1.0])(image, 1, 0).unique().tolist() == [-1.0]


def test_full_share_shows_all_examples_and_split_each_once():
    full, split = make(Brightness(step=1.0)), make(Brightness(step=1.0), share="split")
    own = full.indices(1, 0, "train")
    assert all(np.array_equal(full.indices(1, e, "train"), own) for e in range(4))
    parts = np.concatenate([split.indices(1, e, "train") for e in range(4)])
    assert np.array_equal(np.sort(parts), own)
    for scenario in (full, split):
        assert len(scenario.indices(None, 3, "test")) == 30
        assert scenario.classes(2) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": Rotation(degrees=[0, 10])}, "degrees has 2 entries for 4 experiences"),
        ({"shift": Brightness(step=[0.0])}, "step has 1 entries for 4 experiences"),
        ({"shift": Rotation(degrees=1), "shape": (9,)}, r"needs images \[C, H, W\]"),
        ({"shift": Permutation(), "share": "half"}, "share must be full or split"),
    ],
)
def test_what_cannot_work_fails_in_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
