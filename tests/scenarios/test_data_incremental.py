import numpy as np
import pytest

from scenarios.data_incremental import DataIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID, QuantitySkew, Resampled
from scenarios.toy import toy


def make(partition=None, num_experiences=5, num_clients=4, seed=0):
    return DataIncremental(
        dataset=toy(num_classes=3, shape=[2], train_examples=203, test_examples=60),
        partition=partition or QuantitySkew(law="lognormal", spread=1.5),
        order=SameOrder(),
        num_clients=num_clients,
        num_experiences=num_experiences,
        seed=seed,
    )


def test_every_example_comes_once():
    scenario = make()
    parts = [[scenario.indices(c, e, "train") for e in range(5)] for c in range(4)]
    everything = np.concatenate([p for row in parts for p in row])
    assert np.array_equal(np.sort(everything), np.arange(203))
    for e in range(5):
        union = np.sort(np.concatenate([row[e] for row in parts]))
        assert np.array_equal(union, scenario.indices(None, e, "train"))


def test_parts_of_a_client_are_of_equal_size():
    scenario = make()
    for c in range(4):
        sizes = [len(scenario.indices(c, e, "train")) for e in range(5)]
        assert max(sizes) - min(sizes) <= 1


def test_clients_with_little_data_do_not_all_begin_at_once():
    scenario = make(partition=IID(), num_clients=203)
    first = [next(e for e in range(5) if len(scenario.indices(c, e, "train"))) for c in range(203)]
    counts = np.bincount(first, minlength=5)
    assert counts.min() > 20


def test_test_data_stay():
    scenario = make()
    for c in (None, 0, 3):
        for e in range(1, 5):
            assert np.array_equal(scenario.indices(c, e, "test"), scenario.indices(c, 0, "test"))


def test_seed_decides_the_cut():
    first, again, other = (make(partition=IID(), seed=s).indices(0, 0, "train") for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_shared_examples_may_be_in_any_part():
    partition = Resampled(samples_per_client=20, test_samples_per_client=5)
    scenario = make(partition=partition, num_clients=1_000_000)
    parts = [scenario.indices(123_456, e, "train") for e in range(5)]
    assert [len(p) for p in parts] == [4] * 5
    assert len(set(np.concatenate(parts).tolist())) == 20
    assert len(scenario.indices(None, 2, "train")) == 203


def test_no_experience_is_an_error():
    with pytest.raises(ValueError, match="num_experiences must be at least 1"):
        make(num_experiences=0)
