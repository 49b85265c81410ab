import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedsim.functional.prototypes import (
    Statistics,
    class_means,
    class_statistics,
    clip_rows,
    merge,
    open_scores,
    prototype_scores,
    running_mean,
    second_moment,
    shared_precision,
    squared_distances,
)


def pool(n=200, d=7, num_classes=9, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng), torch.randint(num_classes, (n,), generator=rng)


def test_statistics_of_three_points_by_hand():
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    classes, sums, counts = class_statistics(points, torch.tensor([7, 2, 7]))
    assert classes.tolist() == [2, 7]
    assert sums.tolist() == [[3.0, 4.0], [6.0, 8.0]]
    assert counts.tolist() == [1, 2]


def test_overlapping_classes_merge_to_the_count_weighted_mean():
    first = Statistics(torch.tensor([3]), torch.tensor([[6.0]]), torch.tensor([3]))  # mean 2
    second = Statistics(torch.tensor([1, 3]), torch.tensor([[5.0], [8.0]]), torch.tensor([1, 1]))
    merged = merge([first, second])
    assert merged.classes.tolist() == [1, 3]
    assert_close(class_means(merged), torch.tensor([[5.0], [3.5]], dtype=torch.float64))


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_any_partition_in_any_order_gives_the_pooled_means(parts):
    points, targets = pool()
    owner = torch.randint(parts, (len(points),), generator=torch.Generator().manual_seed(1))
    pieces = [class_statistics(points[owner == i], targets[owner == i]) for i in range(parts)]
    expected = np.stack([points[targets == c].double().numpy().mean(0) for c in range(9)])
    for order in (pieces, pieces[::-1]):
        assert np.abs(class_means(merge(order)).numpy() - expected).max() < 1e-6


def test_order_of_the_parts_does_not_show_in_single_precision():
    points, targets = pool(n=1000)
    pieces = [class_statistics(points[i::40], targets[i::40]) for i in range(40)]
    forth, back = class_means(merge(pieces)).float(), class_means(merge(pieces[::-1])).float()
    assert torch.equal(forth, back)


def test_the_running_mean_is_the_merge():
    points, targets = pool(n=90)
    old = class_statistics(points[:60], targets[:60])
    new = class_statistics(points[60:], targets[60:])
    rows = torch.searchsorted(old.classes, new.classes)
    running = class_means(old).clone()
    running[rows] = running_mean(running[rows], old.counts[rows], class_means(new), new.counts)
    assert_close(running.double(), class_means(merge([old, new])), atol=1e-6, rtol=0)


def test_the_running_mean_of_a_new_class_is_its_mean():
    zero = torch.zeros(1)
    mean = torch.tensor([[2.0, -1.0]])
    assert_close(running_mean(torch.zeros(1, 2), zero, mean, torch.tensor([4.0])), mean)


def test_merging_cumulative_means_by_new_counts_would_be_wrong():
    """The rule of the reference code: the old mean enters a second time with the new weight."""
    old = Statistics(torch.tensor([0]), torch.tensor([[0.0]]), torch.tensor([2]))
    new = Statistics(torch.tensor([0]), torch.tensor([[6.0]]), torch.tensor([1]))
    exact = class_means(merge([old, new]))
    cumulative = running_mean(torch.tensor([[0.0]]), torch.tensor([2]), exact, torch.tensor([1]))
    assert exact.item() == 2.0
    assert cumulative.item() == pytest.approx(2 / 3)


def test_distances_equal_the_direct_formula():
    a, b = pool(n=20)[0], pool(n=5, seed=3)[0]
    assert_close(squared_distances(a, b), (a[:, None] - b[None]).square().sum(-1))


def test_scores_pick_the_nearest_by_each_metric():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    point = torch.tensor([[1.0, 2.0]])
    assert prototype_scores(point, prototypes).tolist() == [[-4.0, -65.0]]
    assert prototype_scores(point, prototypes, "cosine").argmax().item() == 1
    precision = torch.diag(torch.tensor([1.0, 0.01]))
    scores = prototype_scores(point, prototypes, "mahalanobis", precision)
    assert_close(scores, torch.tensor([[-0.04, -1.64]]))


def test_a_precision_is_needed_for_mahalanobis_and_nothing_else():
    points = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="mahalanobis"):
        prototype_scores(points, points, "mahalanobis")
    with pytest.raises(ValueError, match="mahalanobis"):
        prototype_scores(points, points, "cosine", torch.eye(2))
    with pytest.raises(ValueError, match="one of euclidean"):
        prototype_scores(points, points, "manhattan")


def test_shared_precision_equals_numpy_from_merged_second_moments():
    points, targets = pool(n=400)
    points = points.double()
    parts = [(points[i::4], targets[i::4]) for i in range(4)]
    statistics = merge([class_statistics(*part) for part in parts])
    outer = sum(second_moment(part[0]) for part in parts)
    centred = np.concatenate(
        [points[targets == c].numpy() - points[targets == c].numpy().mean(0) for c in range(9)]
    )
    within = centred.T @ centred / len(points)
    shrunk = 0.9 * within + 0.1 * np.trace(within) / 7 * np.eye(7)
    precision = shared_precision(outer, statistics, 0.1).numpy()
    assert np.abs(precision - np.linalg.inv(shrunk)).max() < 1e-12


def test_full_shrinkage_makes_mahalanobis_euclidean():
    points, targets = pool()
    points = points.double()
    statistics = class_statistics(points, targets)
    precision = shared_precision(second_moment(points), statistics, 1.0)
    means = class_means(statistics)
    scaled = prototype_scores(points, means, "mahalanobis", precision)
    assert_close(scaled / precision[0, 0], prototype_scores(points, means))


def test_shared_precision_refuses_no_shrinkage():
    statistics = class_statistics(*pool())
    with pytest.raises(ValueError, match="shrinkage"):
        shared_precision(torch.eye(7), statistics, 0.0)


def test_clipping_shortens_long_rows_only():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert_close(clip_rows(rows, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_unknown_classes_can_never_be_predicted():
    spread = open_scores(torch.tensor([[-5.0, -9.0]]), torch.tensor([4, 2]), 6)
    assert spread.argmax(1).item() == 4
    assert spread[0].isinf().sum() == 4


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one target each"):
        class_statistics(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one part"):
        merge([])
