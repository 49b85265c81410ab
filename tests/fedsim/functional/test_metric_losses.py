import math

import pytest
import torch
from torch.testing import assert_close

from fedsim.functional.metric_losses import (
    contrastive_terms,
    icnn,
    icnn_score,
    labels_of,
    proto_triplet,
    proto_triplet_terms,
    prototypical,
    prototypical_loo,
    supervised_contrastive,
)

LOSSES = [prototypical, prototypical_loo, proto_triplet, icnn, supervised_contrastive]


def line(*points):
    return torch.tensor(points, dtype=torch.float64).unsqueeze(1)


def blobs(separation, classes=4, support=6, queries=6, d=5, std=1.0, seed=0):
    """An episode of Gaussian classes whose centres lie ``separation`` stds apart."""
    rng = torch.Generator().manual_seed(seed)
    centres = separation * torch.eye(max(classes, d), d, dtype=torch.float64)[:classes] / 2**0.5
    shape = (classes, support + queries, d)
    noise = torch.randn(shape, generator=rng, dtype=torch.float64)
    images = std * (centres.unsqueeze(1) + noise)
    return images[:, :support], images[:, support:]


# ---- values by hand -------------------------------------------------------------------------


def test_prototypical_by_hand():
    support = torch.tensor([[[0.0], [2.0]], [[4.0], [4.0]]], dtype=torch.float64)  # means 1 and 4
    queries = torch.tensor([[[2.0]], [[4.0]]], dtype=torch.float64)
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-9))) / 2
    assert prototypical(support, queries).item() == pytest.approx(expected)


def test_prototypical_loo_equals_the_loop_over_left_out_images():
    support, queries = blobs(2.0)
    images = torch.cat([support, queries], 1)
    total = 0.0
    for label in range(4):
        for i in range(12):
            means = images.mean(1)
            means[label] = torch.cat([images[label, :i], images[label, i + 1 :]]).mean(0)
            logits = -(images[label, i] - means).square().sum(1)
            total -= logits.log_softmax(0)[label].item() / 48
    assert prototypical_loo(support, queries).item() == pytest.approx(total)


def test_proto_triplet_by_hand():
    points, prototypes = line(0.0, 2.0, 3.0), line(0.0, 3.0)
    loss, active = proto_triplet_terms(points, torch.tensor([0, 0, 1]), prototypes)
    # own - wrong + margin: 0 - 3 + .5 -> 0; 2 - 1 + .5 = 1.5; 0 - 3 + .5 -> 0
    assert loss.item() == pytest.approx(0.5, abs=1e-3)
    assert active.item() == pytest.approx(1 / 3)


def test_icnn_by_hand():
    """Classes {0, 1} and {3, 5} on a line; k = min(4, 4 - 2) = 2.

    Own-class ratios 1/3, 1/2, 1, 1/2; strangers among the first two 3, 2, 2, 4 of at most 4;
    half of the neighbours are own. lambda_s = 5/12, lambda_d = 11/16, gamma = 1/2.
    """
    points, labels = line(0.0, 1.0, 3.0, 5.0), torch.tensor([0, 0, 1, 1])
    score = icnn_score(points, labels, points, labels, same_set=True)
    assert score.item() == pytest.approx(((5 / 12 + 11 / 16) / 2 + 1 / 2) / 2, abs=1e-5)
    support = points.reshape(2, 2, 1)
    loss = icnn(support, support, pairs="support")
    assert loss.item() == pytest.approx(-math.log(score.item()))


def test_icnn_keeps_the_nearest_neighbour_of_a_query():
    """Query 0.9 (class 0) against 0, 1, 3, 5: neighbours 1 and 0, both own, stranger at 2.1."""
    others, labels = line(0.0, 1.0, 3.0, 5.0), torch.tensor([0, 0, 1, 1])
    query, own = line(0.9), torch.tensor([0])
    score = icnn_score(query, own, others, labels, same_set=False)
    compact = 1 - (0.1 + 0.9) / 2.1 / 2
    assert score.item() == pytest.approx(((compact + 1) / 2 + 1) / 2, abs=1e-4)


def test_supervised_contrastive_by_hand():
    points = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    expected = math.log(1 + math.exp(-2))  # logits 2 for the own class, 0 for the other
    assert contrastive_terms(points, labels, 0.5).item() == pytest.approx(expected)


# ---- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_gradients_in_double_precision(loss):
    support, queries = blobs(1.5, classes=3, support=3, queries=2)
    inputs = support.requires_grad_(), queries.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_a_detached_global_table_gets_no_gradient():
    points = line(0.0, 1.0).requires_grad_()
    table = line(0.5, 0.6).requires_grad_()
    proto_triplet_terms(points, torch.tensor([0, 1]), table.detach()).loss.backward()
    assert table.grad is None
    assert points.grad.abs().sum() > 0


# ---- direction, invariance ------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_separated_classes_cost_less_than_overlapping_ones(loss):
    values = [loss(*blobs(separation)).item() for separation in (0.0, 2.0, 6.0)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_permuting_classes_and_images_changes_nothing(loss):
    support, queries = blobs(2.0)
    classes, images = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 0, 2, 4, 1, 3])
    shuffled = loss(support[classes][:, images], queries[classes][:, images])
    assert_close(shuffled, loss(support, queries))


def test_scale_changes_the_triplet_but_not_the_icnn_score():
    support, queries = blobs(2.0)
    assert_close(icnn(10 * support, 10 * queries), icnn(support, queries), atol=1e-4, rtol=0)
    assert (proto_triplet(10 * support, 10 * queries) - proto_triplet(support, queries)).abs() > 0.1


def test_tight_blobs_satisfy_both_losses_and_mixed_labels_do_not():
    support, queries = blobs(500.0, std=0.02)
    assert proto_triplet(support, queries).item() == 0.0
    assert icnn(support, queries).exp().reciprocal() > 0.95
    mixed_support, mixed_queries = blobs(0.0)
    assert icnn(mixed_support, mixed_queries).exp().reciprocal() < 0.7


def test_of_separated_classes_icnn_goes_on_where_the_others_stop():
    """Nobody's first four are strangers: the loss is ``-log(1 - mean rho / 4)``, on any scale."""
    support, queries = (x.requires_grad_() for x in blobs(40.0))
    images = torch.cat([support, queries], 1).detach()
    rho = []
    for label, own in enumerate(images):
        strangers = torch.cat([images[:label], images[label + 1 :]]).flatten(0, 1)
        near = torch.cdist(own, own).sort(1).values[:, 1:5]
        rho.append(near / torch.cdist(own, strangers).amin(1, keepdim=True))
    expected = -math.log(1 - torch.stack(rho).mean().item() / 4)
    pull = icnn(support, queries)
    assert pull.item() == pytest.approx(expected, abs=1e-5)
    largest = {
        loss.__name__: torch.autograd.grad(loss(support, queries), support)[0].abs().max().item()
        for loss in (prototypical, proto_triplet, icnn)
    }
    assert largest["proto_triplet"] == 0.0
    assert largest["prototypical"] < 1e-12
    assert largest["icnn"] > 1e-5


# ---- edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("classes", "support"), [(3, 1), (1, 2), (2, 1)], ids=["one shot", "one class", "two points"]
)
def test_small_episodes_have_finite_values_and_gradients(loss, classes, support):
    s, q = (x.requires_grad_() for x in blobs(1.0, classes=classes, support=support, queries=1))
    value = loss(s, q)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_duplicate_points_have_finite_gradients(loss):
    images = torch.ones(3, 2, 4, dtype=torch.float64, requires_grad=True)
    loss(images, images).backward()
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize("pairs", ["support", "query", "full"])
def test_a_single_class_costs_nothing(pairs):
    support, queries = blobs(1.0, classes=1)
    assert icnn(support, queries, pairs=pairs).item() == 0.0
    assert proto_triplet(support, queries).item() == 0.0


@pytest.mark.parametrize("pairs", ["support", "query", "full"])
def test_one_shot_is_finite_for_all_pairs(pairs):
    assert torch.isfinite(icnn(*blobs(1.0, support=1, queries=2), pairs=pairs))


def test_labels_follow_the_flattened_images():
    assert labels_of(torch.zeros(2, 3, 5)).tolist() == [0, 0, 0, 1, 1, 1]


def test_unknown_pairs_and_senseless_k_are_refused():
    support, queries = blobs(1.0)
    with pytest.raises(ValueError, match="pairs must be"):
        icnn(support, queries, pairs="all")
    with pytest.raises(ValueError, match="k must be at least 1"):
        icnn(support, queries, k=0)
