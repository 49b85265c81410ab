import pytest
import torch

from scenarios.ring import CENTRES, ring, uniform_points


def test_blobs_lie_around_their_centres():
    data = ring(train_per_class=400, test_per_class=5)
    assert data.num_classes == 8
    assert len(data.test.targets) == 40
    for label, centre in enumerate(CENTRES):
        points = data.train.inputs[data.train.targets == label]
        torch.testing.assert_close(points.mean(dim=0), torch.tensor(centre), atol=0.01, rtol=0)
        torch.testing.assert_close(points.std(dim=0), torch.full((2,), 0.035), atol=0.005, rtol=0)


def test_points_depend_on_the_seed_and_on_nothing_else():
    assert torch.equal(ring(seed=3).train.inputs, ring(seed=3).train.inputs)
    assert not torch.equal(ring(seed=3).train.inputs, ring(seed=4).train.inputs)


def test_uniform_points_fill_the_unit_square():
    points = uniform_points(count=4000).train.inputs
    assert 0.0 <= float(points.min()) <= float(points.max()) <= 1.0
    torch.testing.assert_close(points.mean(dim=0), torch.full((2,), 0.5), atol=0.02, rtol=0)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="train_per_class"):
        ring(train_per_class=0)
