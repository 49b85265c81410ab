import tracemalloc

import numpy as np
import pytest

from fedsim.data import Dataset
from fedsim.seeding import words
from scenarios.holdings import dirichlet, distinct, mirror, raise_to_minimum
from scenarios.partition import (
    IID,
    Dirichlet,
    Natural,
    Own,
    Partition,
    QuantitySkew,
    Resampled,
    Shards,
)
from scenarios.toy import toy

DEALING = [
    IID(),
    Dirichlet(alpha=0.1),
    Shards(shards_per_client=2),
    QuantitySkew(law="lognormal", spread=1.0),
    QuantitySkew(law="dirichlet", spread=0.3),
    Natural(),
]
RESAMPLED = Resampled(samples_per_client=7, test_samples_per_client=3)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return toy(num_classes=5, shape=[2], train_examples=200, test_examples=100, num_groups=20)


def label_table(partition: Partition, data: Dataset, num_clients: int, seed: int = 0):
    """Training examples of every client and class, [C, K]."""
    owners = partition.holdings(data, num_clients, seed).owners("train")
    table = np.zeros((num_clients, data.num_classes), int)
    np.add.at(table, (owners, data.train.targets.numpy()), 1)
    return table


@pytest.mark.parametrize("partition", DEALING)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_example_is_dealt_exactly_once(partition, split, data):
    holdings = partition.holdings(data, 10, 0)
    parts = [holdings.of(c, split) for c in range(10)]
    total = len(data.train.targets if split == "train" else data.test.targets)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(total))
    for part in parts:
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


@pytest.mark.parametrize("partition", [*DEALING, RESAMPLED])
@pytest.mark.parametrize("split", ["train", "test"])
def test_seed_decides_alone(partition, split, data):
    first, again, other = (partition.holdings(data, 10, seed) for seed in (0, 0, 1))
    for c in range(10):
        assert np.array_equal(first.of(c, split), again.of(c, split))
    assert any(not np.array_equal(first.of(c, split), other.of(c, split)) for c in range(10))


@pytest.mark.parametrize("partition", DEALING)
def test_owners_agree_with_parts(partition, data):
    holdings = partition.holdings(data, 10, 0)
    owners = holdings.owners("train")
    for c in range(10):
        assert np.array_equal(np.flatnonzero(owners == c), holdings.of(c, "train"))


def test_iid_sizes_differ_by_one_at_most(data):
    sizes = label_table(IID(), data, 7).sum(1)
    assert sizes.sum() == 200
    assert sizes.max() - sizes.min() == 1


def test_dirichlet_skew_grows_as_alpha_falls(data):
    largest_class = []
    for alpha in (100.0, 1.0, 0.1, 0.01):
        tables = [label_table(Dirichlet(alpha=alpha), data, 5, seed) for seed in range(5)]
        largest_class.append(np.mean([(t.max(1) / t.sum(1)).mean() for t in tables]))
    assert largest_class == sorted(largest_class)
    assert largest_class[0] < 0.4
    assert largest_class[-1] > 0.8


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.5, 1e6])
def test_dirichlet_serves_a_thousand_clients(alpha):
    data = toy(num_classes=10, shape=[1], train_examples=5000)
    sizes = label_table(Dirichlet(alpha=alpha, min_examples=5), data, 1000).sum(1)
    assert sizes.min() >= 5
    assert sizes.sum() == 5000


def test_dirichlet_draw_has_the_right_mean_and_spread():
    draws = np.stack([dirichlet(np.random.default_rng(i), 0.5, 4) for i in range(4000)])
    assert np.allclose(draws.sum(1), 1.0)
    assert np.allclose(draws.mean(0), 0.25, atol=0.02)
    # variance of a symmetric Dirichlet: (K - 1) / (K^2 (K alpha + 1))
    assert np.allclose(draws.var(0), 3 / (16 * 3), atol=0.005)


def test_the_largest_give_to_those_below_the_minimum():
    owners = np.array([0] * 6 + [1] * 4 + [2])
    moved = raise_to_minimum(owners, 4, 2, np.random.default_rng(0))
    # lacking: client 2 one, client 3 two; client 0 gives them down to the level of client 1
    assert np.bincount(moved, minlength=4).tolist() == [3, 4, 2, 2]
    assert np.array_equal(moved[6:10], owners[6:10])
    untouched = raise_to_minimum(owners, 3, 1, np.random.default_rng(0))
    assert np.array_equal(untouched, owners)


def test_shards_bound_the_classes_of_a_client(data):
    table = label_table(Shards(shards_per_client=2), data, 10)
    assert np.all(table.sum(1) == 20)
    assert np.all((table > 0).sum(1) <= 2)  # shards of 10 in classes of 40: one class a shard


def test_quantity_skew_is_in_the_sizes(data):
    equal = label_table(QuantitySkew(law="lognormal", spread=0.0), data, 10).sum(1)
    skewed = label_table(QuantitySkew(law="lognormal", spread=2.0), data, 10).sum(1)
    assert np.all(equal == 20)
    assert skewed.min() >= 1
    assert skewed.std() > 10


def test_natural_groups_stay_whole(data):
    holdings = Natural().holdings(data, 6, 0)
    for split, examples in (("train", data.train), ("test", data.test)):
        owners, groups = holdings.owners(split), examples.groups.numpy()
        for group in range(20):
            assert len(set(owners[groups == group])) == 1
    train, test = holdings.owners("train"), holdings.owners("test")
    for group in range(20):
        of_train = train[data.train.groups.numpy() == group][0]
        assert np.all(test[data.test.groups.numpy() == group] == of_train)


def test_natural_needs_groups():
    with pytest.raises(ValueError, match="toy has none; use dataset=omniglot"):
        Natural().holdings(toy(), 2, 0)


def test_natural_needs_a_group_per_client(data):
    with pytest.raises(ValueError, match="num_clients=21 is more than the 20 groups"):
        Natural().holdings(data, 21, 0)


@pytest.mark.parametrize("partition", [p for p in DEALING if not isinstance(p, Natural)])
def test_more_clients_than_examples_is_one_clear_error(partition, data):
    with pytest.raises(ValueError, match=r"num_clients=201 .* toy has 200; .*partition=resampled"):
        partition.holdings(data, 201, 0)


def test_resampled_serves_any_number_of_clients(data):
    holdings = RESAMPLED.holdings(data, 1_000_000, 0)
    part = holdings.of(999_999, "train")
    assert len(part) == len(set(part.tolist())) == 7
    assert len(holdings.of(999_999, "test")) == 3
    assert not np.array_equal(part, holdings.of(0, "train"))
    assert holdings.owners("train") is None


@pytest.mark.parametrize("partition", [*DEALING, RESAMPLED])
@pytest.mark.parametrize("split", ["train", "test"])
def test_several_clients_at_once_hold_what_each_holds(partition, split, data):
    holdings = partition.holdings(data, 10, 0)
    together = holdings.of_each(range(10), split)
    assert all(np.array_equal(part, holdings.of(c, split)) for c, part in enumerate(together))


def test_every_subset_is_drawn_equally_often():
    """15 subsets of four out of six; the limit is the 99.9 % point of chi square."""
    draws = words(4, 0, "test", each=range(15_000))
    _, counts = np.unique(distinct(draws, 6), axis=0, return_counts=True)
    assert len(counts) == 15
    assert (np.square(counts - 1000) / 1000).sum() < 36.1


def test_floyds_sampling_by_hand():
    """Bounds are 3, 4, 5 for three out of five: 7 % 3 = 1, 5 % 4 = 1 taken so 3, 8 % 5 = 3 so 4."""
    assert distinct(np.array([[7, 5, 8], [6, 5, 9]], np.uint64), 5).tolist() == [
        [1, 3, 4],
        [0, 1, 4],
    ]


def test_resampled_skew_is_the_same_in_training_and_test(data):
    partition = Resampled(samples_per_client=30, test_samples_per_client=15, alpha=0.05)
    holdings = partition.holdings(data, 50, 0)
    top_train, share = [], []
    for c in range(50):
        train = np.bincount(data.train.targets.numpy()[holdings.of(c, "train")], minlength=5)
        test = np.bincount(data.test.targets.numpy()[holdings.of(c, "test")], minlength=5)
        top_train.append(train.max() / train.sum())
        share.append(test[train.argmax()] / test.sum())
    assert np.mean(top_train) > 0.7
    assert np.mean(share) > 0.7


def test_resampled_cannot_draw_more_than_there_is(data):
    with pytest.raises(ValueError, match="samples_per_client=201 is more than toy has: 200"):
        Resampled(samples_per_client=201, test_samples_per_client=1).holdings(data, 1, 0)


def test_own_is_everything_that_is_found(data):
    holdings = Own().holdings(data, 1000, seed=0)
    assert holdings.of(999, "train").tolist() == list(range(200))
    assert holdings.of(0, "test").tolist() == list(range(100))
    assert holdings.owners("train") is None


def test_mirrored_test_data_follow_the_training_classes():
    rng = np.random.default_rng(0)
    train_targets, train_owners = rng.integers(3, size=600), rng.integers(4, size=600)
    train_owners[train_targets == 2] = 1  # class 2 belongs to client 1 alone
    test_targets = np.repeat(np.arange(3), 100)
    owners = mirror(train_targets, train_owners, test_targets, rng)
    assert np.all(owners[200:] == 1)
    for label in (0, 1):
        train = np.bincount(train_owners[train_targets == label], minlength=4)
        test = np.bincount(owners[test_targets == label], minlength=4)
        assert np.abs(test - 100 * train / train.sum()).max() <= 1.0


def test_test_class_without_training_examples_is_dealt_too():
    owners = mirror(np.zeros(4, int), np.arange(4), np.array([0, 1, 1]), np.random.default_rng(0))
    assert owners.shape == (3,)
    assert set(owners.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(alpha=0.0), "alpha must be positive"),
        (lambda: Shards(shards_per_client=0), "at least 1"),
        (lambda: QuantitySkew(law="normal", spread=1.0), "lognormal or dirichlet"),
        (lambda: QuantitySkew(law="dirichlet", spread=0.0), "spread must be positive"),
        (lambda: Resampled(samples_per_client=0, test_samples_per_client=0), "at least 1"),
    ],
)
def test_arguments_are_checked_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "partition", [IID(), Dirichlet(alpha=0.3), QuantitySkew(law="lognormal", spread=1.0)]
)
def test_a_client_costs_its_indices_only(partition):
    data = toy(num_classes=10, shape=[1], train_examples=60_000, test_examples=10_000)
    tracemalloc.start()
    few = partition.holdings(data, 100, 0)
    kept_by_few = tracemalloc.get_traced_memory()[0]
    many = partition.holdings(data, 50_000, 0)
    kept_by_many = tracemalloc.get_traced_memory()[0] - kept_by_few
    tracemalloc.stop()
    assert len(few.of(0, "train")) > len(many.of(0, "train"))
    assert kept_by_many - kept_by_few < 2 * 8 * 60_000  # one offset per client and split
