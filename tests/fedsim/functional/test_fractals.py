import pytest
import torch
from torch import tensor

from fedsim.functional.fractal_images import hit_counts
from fedsim.functional.fractals import (
    BURN_IN,
    MAPS,
    Systems,
    attractor,
    fixed_point,
    jitter_system,
    join,
    rotation,
    sample_singular_values,
    sample_system,
)
from fedsim.seeding import generator


def systems(count, shift=0.0):
    return join([sample_system(generator(0, "system", i), shift) for i in range(count)])


def test_constraints_hold_for_ten_thousand_systems():
    for i in range(10_000):
        rng = generator(0, "values", i)
        n = 2 + i % 3
        sigma = (5 + n) / 2 + 0.5 * float(torch.rand((), generator=rng))
        values = sample_singular_values(n, sigma, rng)
        first, second = values.T
        assert bool((second >= -1e-6).all() & (first >= second - 1e-6).all())
        assert float(first.max()) <= 1 + 1e-6
        assert float((first + 2 * second).sum()) == pytest.approx(sigma, abs=1e-5)


def test_every_map_is_a_contraction_and_sigma_lies_in_the_paper_s_range():
    many = systems(1000)
    values = torch.linalg.svdvals(many.matrices)
    assert float(values.max()) <= 1 + 1e-5
    sigma = (values[..., 0] + 2 * values[..., 1]).sum(dim=1)
    low, high = (5 + many.sizes) / 2, (6 + many.sizes) / 2
    assert bool((sigma >= low - 1e-4).all() & (sigma <= high + 1e-4).all())
    assert many.sizes.unique().tolist() == [2, 3, 4]
    assert float(many.offsets.abs().max()) <= 1.0
    assert bool((torch.linalg.det(many.matrices) < -1e-3).any())  # reflections occur


def test_no_attractor_of_a_thousand_systems_has_a_nan_or_infinity():
    draws = torch.rand(1000, BURN_IN + 10, 20, generator=generator(0, "walk"))
    assert bool(torch.isfinite(attractor(systems(1000), draws)).all())


def test_points_stay_in_a_known_attractor():
    """Three maps to half the size, one per corner: the Sierpinski triangle."""
    corners = tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    matrices = torch.eye(2).repeat(MAPS, 1, 1) / 2
    matrices[3] = 0.0  # there is no fourth map
    triangle = Systems(matrices=matrices[None], offsets=corners[None] / 2, sizes=tensor([3]))
    points = attractor(triangle, torch.rand(1, 120, 50, generator=generator(0, "w")))[0]
    assert points.shape == ((120 - BURN_IN) * 50, 2)
    assert bool((points >= 0).all() & (points.sum(dim=1) <= 1 + 1e-6).all())
    middle = (points > 0.26).all(dim=1) & (points.sum(dim=1) < 0.74)
    assert not bool(middle.any())  # the large hole
    quarters = [(points[:, 0] > 0.5), (points[:, 1] > 0.5)]
    for part in quarters:  # a third of the points near each corner
        assert float(part.float().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_maps_are_chosen_in_proportion_to_their_determinant():
    matrices = torch.zeros(1, MAPS, 2, 2)
    matrices[0, 0], matrices[0, 1] = torch.eye(2) * 0.6, torch.eye(2) * 0.2  # 9 : 1
    offsets = torch.zeros(1, MAPS, 2)
    offsets[0, 1] = 10.0
    walk = torch.rand(1, 400, 100, generator=generator(0, "w"))
    points = attractor(Systems(matrices=matrices, offsets=offsets, sizes=tensor([2])), walk)[0]
    share = float((points[:, 0] >= 10.0).float().mean())
    assert share == pytest.approx(0.1, abs=0.01)


def test_the_fixed_point_is_fixed():
    system = sample_system(generator(0, "system", 1))
    start = fixed_point(system.matrices[:, 0], system.offsets[:, 0])
    moved = (system.matrices[:, 0] @ start[..., None])[..., 0] + system.offsets[:, 0]
    torch.testing.assert_close(moved, start, atol=1e-4, rtol=1e-4)


def test_rotation_by_a_right_angle():
    quarter = rotation(tensor([torch.pi / 2]))[0]
    torch.testing.assert_close(quarter @ tensor([1.0, 0.0]), tensor([0.0, 1.0]))


def test_jitter_scales_one_map_and_keeps_the_contraction():
    changed = 0
    for i in range(200):
        system = sample_system(generator(0, "system", i))
        other = jitter_system(system, generator(1, "jitter", i))
        assert float(torch.linalg.svdvals(other.matrices).max()) <= 1 + 1e-5
        differs = (other.matrices != system.matrices).any(dim=3).any(dim=2)[0]
        assert int(differs.sum()) <= 1
        changed += int(differs.sum())
    assert changed > 150


def share_of_hit_pixels(shift):
    draws = torch.stack(
        [torch.rand(BURN_IN + 200, 100, generator=generator(0, "walk", i)) for i in range(100)]
    )
    counts = hit_counts(attractor(systems(100, shift), draws), 64)
    return float((counts > 0).float().mean(dim=(1, 2)).median())


def test_the_sigma_factor_steers_how_much_of_the_image_is_filled():
    dust, paper, blob = (share_of_hit_pixels(shift) for shift in (-1.0, 0.0, 1.0))
    assert 0.05 <= paper <= 0.6
    assert dust < paper < blob


def test_an_impossible_sigma_factor_is_an_error():
    with pytest.raises(ValueError, match=r"must lie in \[0, 6\]"):
        sample_singular_values(2, 6.5, generator(0, "v"))
