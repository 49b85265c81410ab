import numpy as np
import pytest
import torch

from scenarios.toy import toy


def test_seed_decides_alone():
    first, again, other = (toy(seed=s) for s in (0, 0, 1))
    everything = np.arange(200)
    assert torch.equal(first.train.take(everything), again.train.take(everything))
    assert not torch.equal(first.train.take(everything), other.train.take(everything))


def test_classes_lie_around_common_centres_in_both_parts():
    data = toy(num_classes=4, shape=[6], train_examples=400, test_examples=400, noise=0.1)
    train, test = (p.take(np.arange(400)) for p in (data.train, data.test))
    for c in range(4):
        a = train[data.train.targets == c].mean(0)
        b = test[data.test.targets == c].mean(0)
        assert torch.allclose(a, b, atol=0.1)


def test_groups_are_all_there_or_none():
    assert toy().train.groups is None
    groups = toy(num_groups=7).train.groups
    assert sorted(groups.unique().tolist()) == list(range(7))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="at least 1"):
        toy(num_classes=0)
