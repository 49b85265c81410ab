"""Losses that shape an embedding: prototypical, Proto-Triplet, ICNN and supervised contrastive.

Each has a form for an episode, ``loss(support, queries)`` with shapes ``[N, S, d]`` and
``[N, Q, d]``, so that any of them, or an average, can train an encoder.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.functional.prototypes import squared_distances

EPS = 1e-6  # inside square roots, divisions and logarithms, so that gradients stay finite
IcnnPairs = Literal["support", "query", "full"]


def distances(points: Tensor, others: Tensor) -> Tensor:
    """``sqrt(||a_i - b_j||^2 + 1e-6)``, ``[n, d]`` and ``[m, d]`` to ``[n, m]``."""
    difference = points.unsqueeze(1) - others.unsqueeze(0)
    return (difference.square().sum(-1) + EPS).sqrt()


def prototypical(support: Tensor, queries: Tensor, scale: float = 1.0) -> Tensor:
    """Cross-entropy of ``softmax_c(-scale * ||q - p_c||^2)``, ``p_c`` the mean support of class c.

    Args:
        support: ``[N, S, d]``.
        queries: ``[N, Q, d]``.
        scale: Inverse temperature, unitless.

    Returns:
        Mean over the ``N * Q`` queries, a scalar.

    Source:
        Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175.
    """
    logits = -scale * squared_distances(queries.flatten(0, 1), support.mean(1))
    return functional.cross_entropy(logits, labels_of(queries))


def prototypical_loo(support: Tensor, queries: Tensor, scale: float = 1.0) -> Tensor:
    """Prototypical loss in which every image is a query of the mean of the others of its class.

    All ``M = S + Q`` images of a class count as queries; the prototype of a query's own class
    leaves it out, ``p_y = (sum - q) / (M - 1)``, those of the other classes are means of all ``M``.
    One pass through the encoder so gives ``(S + Q) / Q`` times as many queries.

    Args:
        support: ``[N, S, d]``.
        queries: ``[N, Q, d]``; ``S + Q`` must be at least 2.
        scale: Inverse temperature, unitless.

    Returns:
        Mean over the ``N * M`` queries, a scalar.
    """
    images = torch.cat([support, queries], dim=1)
    count = images.shape[1]
    points, means = images.flatten(0, 1), images.mean(1)
    labels = labels_of(images)
    # ||q - (M p - q) / (M - 1)||^2 = (M / (M - 1))^2 ||q - p||^2
    factor = torch.ones(len(points), len(means), dtype=points.dtype, device=points.device)
    factor.scatter_(1, labels.unsqueeze(1), (count / (count - 1)) ** 2)
    return functional.cross_entropy(-scale * squared_distances(points, means) * factor, labels)


class Triplet(NamedTuple):
    """A Proto-Triplet loss, and the share of queries that violate the margin."""

    loss: Tensor
    active: Tensor


def proto_triplet_terms(
    points: Tensor, rows: Tensor, prototypes: Tensor, margin: float = 0.5
) -> Triplet:
    """``mean max(0, d(q, p_y) - min_{c != y} d(q, p_c) + margin)``, the hardest wrong prototype.

    Args:
        points: Queries, ``[n, d]``.
        rows: Row of every query's own prototype, ``[n]``.
        prototypes: ``[N, d]``. Give a global table detached, so that no gradient runs into it.
        margin: Distance by which the own prototype should be nearer.

    Returns:
        The mean and the share of queries with a positive term; zero with a single prototype.

    Source:
        Méndez-Ruiz et al., SuSana Distancia is all you need, 2023, arXiv:2305.09062. Deviation:
        wrong prototypes are told by a mask; the authors' code takes distance zero for "own".
    """
    if len(prototypes) < 2:
        return Triplet((points.sum() + prototypes.sum()) * 0.0, points.new_zeros(()))
    table = distances(points, prototypes)
    own = functional.one_hot(rows, len(prototypes)).bool()
    positive = table[own]
    hardest = table.masked_fill(own, torch.inf).amin(1)
    terms = (positive - hardest + margin).clamp_min(0.0)
    return Triplet(terms.mean(), (terms > 0).to(points.dtype).mean())


def proto_triplet(support: Tensor, queries: Tensor, margin: float = 0.5) -> Tensor:
    """:func:`proto_triplet_terms` of an episode, with the means of the support as prototypes."""
    points = queries.flatten(0, 1)
    return proto_triplet_terms(points, labels_of(queries), support.mean(1), margin).loss


def icnn_score(
    points: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    *,
    k: int = 4,
    same_set: bool,
) -> Tensor:
    """How compact and how far apart classes are around every point, in ``[0, 1]``.

    Of every point the first ``k`` neighbours count (``|others| - 2`` where that is smaller), at
    distances ``d_ij``; ``r_i`` is the distance of the nearest stranger anywhere.

    * ``lambda_s = 1 - mean rho_ij`` over own-class neighbours, ``rho_ij = d_ij / r_i`` divided by
      ``max(1, max_j rho_ij)``; 0 if nobody has an own-class neighbour.
    * ``lambda_d = mean d_ij / max d`` over other-class neighbours; 1 if nobody has one.
    * ``gamma`` = share of own-class points among the neighbours (no gradient).

    Means are over the neighbours of a point, then over the points that have any. The score is
    ``((lambda_s + lambda_d) / 2 + gamma) / 2``; it is 1 where there is no stranger at all.

    Args:
        points: ``[n, d]``.
        labels: ``[n]``.
        others: The set in which neighbours are sought, ``[m, d]``.
        other_labels: ``[m]``.
        k: Neighbours looked at.
        same_set: Whether ``others`` begin with the points themselves, whose self-matches are left
            out.

    Source:
        García Ramírez et al., arXiv:2107.06992, as used by Méndez-Ruiz et al., 2023,
        arXiv:2305.09062, without the variance term. Deviations: self-matches are masked instead of
        dropping the nearest neighbour, and the nearest stranger is sought in the whole set.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    table = distances(points, others)
    same = labels.unsqueeze(1) == other_labels.unsqueeze(0)
    if same_set:
        itself = torch.eye(*table.shape, dtype=torch.bool, device=points.device)
        table = table.masked_fill(itself, torch.inf)
    if bool(same.all()):
        return 1.0 + points.sum() * 0.0
    nearest = min(k, max(len(others) - 2, 1))
    near, order = table.topk(nearest, dim=1, largest=False)
    own = same.gather(1, order)
    stranger = table.masked_fill(same, torch.inf).amin(1, keepdim=True)
    compact = 1.0 - _compactness(near, own, stranger, points)
    apart = _separation(near, ~own)
    gamma = own.to(points.dtype).mean() if len(others) > 2 else points.new_ones(())
    return ((compact + apart) / 2 + gamma) / 2


def icnn(support: Tensor, queries: Tensor, k: int = 4, pairs: IcnnPairs = "full") -> Tensor:
    """``-log(score)`` of an episode, see :func:`icnn_score`.

    Args:
        support: ``[N, S, d]``.
        queries: ``[N, Q, d]``.
        k: Neighbours looked at.
        pairs: ``support`` scores the support among itself, ``query`` the queries among the support,
            ``full`` all images of the episode among themselves.

    Raises:
        ValueError: If ``pairs`` is unknown.
    """
    if pairs == "query":
        score = icnn_score(
            queries.flatten(0, 1),
            labels_of(queries),
            support.flatten(0, 1),
            labels_of(support),
            k=k,
            same_set=False,
        )
        return -score.clamp_min(EPS).log()
    if pairs not in ("support", "full"):
        raise ValueError(f"pairs must be support, query or full, got {pairs!r}")
    images = support if pairs == "support" else torch.cat([support, queries], dim=1)
    points, labels = images.flatten(0, 1), labels_of(images)
    score = icnn_score(points, labels, points, labels, k=k, same_set=True)
    return -score.clamp_min(EPS).log()


def contrastive_terms(points: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of a labelled batch.

    ``mean_i -1/|P(i)| sum_{j in P(i)} log softmax_{a != i}(z_i.z_a / tau)_j`` over the points that
    have another point ``P(i)`` of their class; ``z`` are the points on the unit sphere.

    Args:
        points: ``[n, d]``.
        labels: ``[n]``.
        temperature: ``tau``, unitless, positive.

    Returns:
        A scalar; zero where no class has two points.

    Source:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362 (L_out).
    """
    unit = functional.normalize(points, dim=1)
    itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
    logits = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    likelihood = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0.0)
    positive = (labels.unsqueeze(1) == labels.unsqueeze(0)) & ~itself
    counts = positive.sum(1)
    has = counts > 0
    if not bool(has.any()):
        return points.sum() * 0.0
    return -((likelihood * positive).sum(1)[has] / counts[has]).mean()


def supervised_contrastive(support: Tensor, queries: Tensor, temperature: float = 0.1) -> Tensor:
    """:func:`contrastive_terms` of all images of an episode."""
    images = torch.cat([support, queries], dim=1)
    return contrastive_terms(images.flatten(0, 1), labels_of(images), temperature)


def labels_of(images: Tensor) -> Tensor:
    """Class ``0..N-1`` of every image of ``[N, M, ...]``, flattened, ``[N * M]``."""
    return torch.arange(images.shape[0], device=images.device).repeat_interleave(images.shape[1])


def _compactness(near: Tensor, own: Tensor, stranger: Tensor, points: Tensor) -> Tensor:
    """Mean distance of own-class neighbours, in units of the nearest stranger's, in [0, 1]."""
    has = own.any(1)
    if not bool(has.any()):
        return points.new_ones(())
    finite = near.masked_fill(near.isinf(), 0.0)  # self-matches that fill up a tiny set
    ratios = finite / (stranger + EPS)
    ratios = ratios / ratios.amax(1, keepdim=True).clamp_min(1.0)
    return ((ratios * own).sum(1)[has] / own.sum(1)[has]).mean()


def _separation(near: Tensor, strange: Tensor) -> Tensor:
    """Mean distance of other-class neighbours, in units of the largest, in [0, 1]."""
    has = strange.any(1)
    if not bool(has.any()):
        return near.new_ones(())
    kept = near.masked_fill(~strange, 0.0)
    return ((kept / (kept.max() + EPS)).sum(1)[has] / strange.sum(1)[has]).mean()
