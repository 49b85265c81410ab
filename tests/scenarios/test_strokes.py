import pytest
import torch
from torch.testing import assert_close

from scenarios.strokes import PEN, _inked, strokes


def test_a_straight_stroke_by_hand():
    """From row 1.5 to row 2.5 of 4 pixels, between the columns 1 and 2: half a pixel from both."""
    line = torch.tensor([[0.375, 0.5], [0.5, 0.5], [0.625, 0.5]])
    image = _inked(line.expand(1, 3, 3, 2), 4)[0, 0]
    assert_close(image[1], torch.tensor([0.0, PEN - 0.5, PEN - 0.5, 0.0]))
    assert image[0, 1].item() == pytest.approx(PEN - 1.25**0.5)  # one up and half a pixel aside
    assert_close(image, image.flip(0).flip(1))


def test_sizes_and_range():
    data = strokes(num_classes=5, train_per_class=4, test_per_class=2, image_size=10)
    assert data.train.inputs.shape == (20, 1, 10, 10)
    assert data.test.targets.bincount().tolist() == [2] * 5
    assert 0.0 == data.train.inputs.min() < data.train.inputs.max() == 1.0


def test_drawings_of_a_character_are_alike_and_never_the_same():
    data = strokes(num_classes=30)
    images, targets = data.train.inputs.flatten(1), data.train.targets
    means = torch.stack([images[targets == c].mean(0) for c in range(30)])
    nearest = torch.cdist(data.test.inputs.flatten(1), means).argmin(1)
    assert (nearest == data.test.targets).float().mean() > 0.5  # of 30; chance is 0.03
    assert len(images.unique(dim=0)) == len(images)


def test_the_seed_decides_and_without_noise_all_drawings_are_one():
    first, again, other = (strokes(num_classes=3, seed=seed).train.inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    still = strokes(num_classes=3, noise=0.0).train.inputs.unflatten(0, (3, 15))
    assert torch.equal(still, still[:, :1].expand_as(still))


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"image_size": 0}, {"noise": -0.1}])
def test_senseless_numbers_are_refused(options):
    with pytest.raises(ValueError, match="at least"):
        strokes(**options)
