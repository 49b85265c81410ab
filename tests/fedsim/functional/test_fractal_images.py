import colorsys

import pytest
import torch
from torch import tensor

from fedsim.functional.fractal_images import (
    background,
    blur,
    colour,
    grey,
    hit_counts,
    hsv_to_rgb,
    place,
    plasma,
    turn,
)
from fedsim.seeding import generator


def test_points_fall_into_the_pixels_of_their_bounding_box():
    points = tensor([[[0.0, 0.0], [1.0, 1.0], [0.1, 0.1], [0.9, 0.1]]])
    assert hit_counts(points, 2).tolist() == [[[2.0, 1.0], [0.0, 1.0]]]


def test_a_window_twice_as_wide_shrinks_the_picture_and_one_half_as_wide_cuts_it():
    points = torch.rand(1, 4000, 2, generator=generator(0, "p"))
    wide = hit_counts(points, 16, tensor([[0.5, 0.5, 1.0, 1.0]]))
    assert float(wide.sum()) == 4000
    assert float(wide[0, :3].sum() + wide[0, :, :3].sum()) == 0
    narrow = hit_counts(points, 16, tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert float(narrow.sum()) == pytest.approx(1000, rel=0.1)


def test_grey_divides_by_the_largest_count():
    assert grey(tensor([[[0.0, 4.0], [1.0, 2.0]]])).tolist() == [[[0.0, 1.0], [0.25, 0.5]]]
    assert grey(torch.zeros(1, 2, 2)).sum() == 0


def test_a_patch_is_stamped_at_every_point():
    counts = torch.zeros(1, 5, 5)
    counts[0, 2, 2] = 3
    patch = tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    stamped = grey(counts, patch)[0]
    assert stamped.nonzero().tolist() == [[1, 1], [2, 3]]


@pytest.mark.parametrize("hsv", [(0.0, 1.0, 1.0), (0.35, 0.5, 0.8), (0.99, 0.2, 0.1)])
def test_colours_are_those_of_the_standard_library(hsv):
    rgb = hsv_to_rgb(*(torch.full((1, 1, 1), v) for v in hsv)).flatten().tolist()
    assert rgb == pytest.approx(colorsys.hsv_to_rgb(*hsv), abs=1e-6)


def test_pixels_without_a_point_are_black_and_the_others_bright():
    pictures = tensor([[[0.0, 0.2], [0.6, 1.0]]])
    image = colour(pictures, tensor([[0.3, 0.9, 0.0]]))[0]
    brightness = image.amax(dim=0)
    assert brightness[0, 0] == 0
    assert bool((brightness.flatten()[1:] == 0.5).all())  # the least value


def test_a_landscape_is_rougher_with_less_decay():
    noise = torch.randn(50, 32, 32, generator=generator(0, "n"))
    smooth, rough = (plasma(noise, torch.full((50,), decay)) for decay in (0.4, 0.8))
    for heights in (smooth, rough):
        assert float(heights.min()) == 0.0
        assert float(heights.max()) == pytest.approx(1.0)

    def steps(heights):
        return float((heights[:, 1:] - heights[:, :-1]).abs().mean())

    assert steps(smooth) < 0.7 * steps(rough)


def test_the_middle_of_a_landscape_is_the_mean_of_its_corners_without_noise():
    noise = torch.zeros(1, 4, 4)
    noise[0, 2, 2] = 1.0  # raised in the first step
    heights = plasma(noise, tensor([0.5]))[0]
    assert heights[2, 2] == 1.0
    assert heights[1, 1] == pytest.approx(
        float(heights[0, 0] + heights[0, 2] + heights[2, 0] + 1) / 4
    )


def test_backgrounds_are_colours():
    u = torch.rand(5, 6, generator=generator(0, "u"))
    image = background(torch.rand(5, 8, 8, generator=generator(0, "h")), u)
    assert image.shape == (5, 3, 8, 8)
    assert bool((image >= 0).all() & (image <= 1).all())


def test_turns_are_the_eight_of_the_square():
    picture = torch.arange(9.0).view(1, 3, 3)
    seen = set()
    for i in range(8):
        bits = tensor([[0.9 if i >> b & 1 else 0.1 for b in range(3)]])
        seen.add(tuple(turn(picture, bits).flatten().tolist()))
    assert len(seen) == 8


def test_blur_keeps_the_mean_and_half_of_the_images():
    images = torch.rand(200, 3, 8, 8, generator=generator(0, "i"))
    u = torch.rand(200, 2, generator=generator(0, "u"))
    blurred = blur(images, u)
    same = (blurred == images).flatten(1).all(dim=1)
    assert torch.equal(same, u[:, 0] >= 0.5)
    flat = torch.full((1, 1, 4, 4), 0.7)
    torch.testing.assert_close(blur(flat, tensor([[0.0, 0.5]])), flat)


def test_placed_pictures_have_the_drawn_size_and_place():
    picture = torch.ones(1, 32, 32)
    half = place(picture, tensor([[7 / 9, 0.25, 0.75]]))[0]  # size 0.5, left below
    assert float(half[16:, :16].mean()) == 1.0
    assert float(half.sum()) == 256
    cut = place(picture, tensor([[7 / 9, 0.0, 0.5]]))[0]  # half of it beyond the left edge
    assert float(cut.sum()) == 128


def test_a_thin_line_stays_whole_however_much_it_is_shrunk():
    picture = torch.zeros(1, 32, 32)
    picture[0, 13] = 0.7  # one pixel thin, from side to side
    for size in torch.linspace(0.0, 0.999, 9):
        shrunk = place(picture, torch.tensor([[float(size), 0.5, 0.5]]))[0]
        side = 32 * (0.15 + 0.45 * float(size))
        columns = (shrunk > 0).any(dim=0)
        assert abs(int(columns.sum()) - side) < 2  # pixels that it covers in part are lit
        assert float(shrunk.max()) == pytest.approx(0.7)
        lit = columns.nonzero().flatten()
        assert int(lit[-1] - lit[0]) == len(lit) - 1  # without a gap


def test_a_single_point_is_never_lost():
    picture = torch.zeros(64, 32, 32)
    for i in range(64):
        picture[i, (7 * i) % 32, (11 * i) % 32] = 1.0
    u = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    u[:, 1:] = 0.5
    assert bool((place(picture, u).amax(dim=(1, 2)) == 1.0).all())
