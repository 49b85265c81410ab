"""Class prototypes as additive statistics, and prediction by the nearest one."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine", "mahalanobis"]
METRICS: tuple[str, ...] = get_args(Metric)


class Statistics(NamedTuple):
    """What the mean of every class needs, in a form that adds up.

    Attributes:
        classes: Class ids, ascending, each once; int64 ``[k]``.
        sums: Sum of the embeddings of every class, ``[k, d]``.
        counts: Number of embeddings of every class, int64 ``[k]``.
    """

    classes: Tensor
    sums: Tensor
    counts: Tensor


def class_statistics(embeddings: Tensor, targets: Tensor) -> Statistics:
    """Sum and count of the embeddings of every class that occurs.

    Args:
        embeddings: ``[n, d]``.
        targets: Class of every embedding, ``[n]``.

    Returns:
        Statistics of the classes among ``targets``; sums have the dtype of the embeddings.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if embeddings.dim() != 2 or targets.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings [n, d] with one target each, got {tuple(embeddings.shape)} and"
            f" {tuple(targets.shape)}"
        )
    classes, rows = torch.unique(targets, return_inverse=True)
    sums = embeddings.new_zeros(len(classes), embeddings.shape[1]).index_add_(0, rows, embeddings)
    return Statistics(classes, sums, torch.bincount(rows, minlength=len(classes)))


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together, ``S_c = sum_i S_ic`` and ``N_c = sum_i N_ic``.

    Sums are taken in double precision, so that neither the partition of the data nor the order of
    the parts shows in single precision.

    Args:
        parts: At least one; their classes may overlap. Width ``d`` must be the same.

    Returns:
        One row for every class of any part; sums are float64.

    Raises:
        ValueError: If there is no part.
    """
    listed = list(parts)
    if not listed:
        raise ValueError("expected statistics of at least one part, got none")
    classes, rows = torch.unique(torch.cat([p.classes for p in listed]), return_inverse=True)
    addends = torch.cat([p.sums for p in listed]).double()
    sums = addends.new_zeros(len(classes), addends.shape[1]).index_add_(0, rows, addends)
    added = torch.cat([p.counts for p in listed]).to(torch.int64)
    return Statistics(classes, sums, added.new_zeros(len(classes)).index_add_(0, rows, added))


def class_means(statistics: Statistics) -> Tensor:
    """Prototypes ``p_c = S_c / N_c``, shape ``[k, d]``."""
    return statistics.sums / statistics.counts.unsqueeze(1)


def running_mean(prototypes: Tensor, counts: Tensor, means: Tensor, added: Tensor) -> Tensor:
    """Prototypes after further examples, ``p + n / (k + n) * (mean - p)``.

    The same as adding statistics; the form in which a client may update a table of means.

    Args:
        prototypes: ``[k, d]``; rows with ``counts == 0`` may hold anything finite.
        counts: Examples behind every prototype, ``[k]``.
        means: Mean of the new examples of every class, ``[k, d]``.
        added: Number of new examples, ``[k]``, with ``counts + added > 0``.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150. Their code weighs the
        client's cumulative mean by the new examples alone, which counts old examples twice; here
        the mean of the new examples is what comes in.
    """
    share = (added / (counts + added)).unsqueeze(1)
    return prototypes + share * (means - prototypes)


def squared_distances(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """``||e_i - p_c||^2`` of all pairs, ``[n, d]`` and ``[k, d]`` to ``[n, k]``, never negative."""
    norms = embeddings.square().sum(1, keepdim=True) + prototypes.square().sum(1)
    return torch.addmm(norms, embeddings, prototypes.T, alpha=-2.0).clamp_min_(0.0)


def prototype_scores(
    embeddings: Tensor,
    prototypes: Tensor,
    metric: Metric = "euclidean",
    precision: Tensor | None = None,
) -> Tensor:
    """Scores whose largest entry is the nearest prototype.

    ``euclidean``: ``-||e - p||^2``; ``cosine``: ``e.p / (||e|| ||p||)``; ``mahalanobis``:
    ``-(e - p)^T P (e - p)``.

    Args:
        embeddings: ``[n, d]``.
        prototypes: ``[k, d]``.
        metric: How nearness is measured.
        precision: Positive definite ``P``, ``[d, d]``, for ``mahalanobis`` only.

    Returns:
        ``[n, k]``.

    Raises:
        ValueError: If the metric is unknown or does not go with ``precision``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if (metric == "mahalanobis") != (precision is not None):
        raise ValueError(f"a precision matrix belongs to metric 'mahalanobis'; got {metric!r}")
    if metric == "cosine":
        normalize = torch.nn.functional.normalize
        return normalize(embeddings, dim=1) @ normalize(prototypes, dim=1).T
    if precision is not None:
        root = torch.linalg.cholesky(precision)
        embeddings, prototypes = embeddings @ root, prototypes @ root
    return -squared_distances(embeddings, prototypes)


def second_moment(embeddings: Tensor) -> Tensor:
    """``sum_i e_i e_i^T``, the additive part of a covariance; ``[n, d]`` to ``[d, d]``."""
    return embeddings.T @ embeddings


def shared_precision(outer: Tensor, statistics: Statistics, shrinkage: float) -> Tensor:
    """Inverse of the covariance within classes, shrunk towards a multiple of the identity.

    ``W = (sum_i e_i e_i^T - sum_c S_c S_c^T / N_c) / sum_c N_c`` and
    ``P = ((1 - s) W + s tr(W)/d I)^-1``

    Args:
        outer: Sum of outer products over the same examples as ``statistics``, ``[d, d]``.
        statistics: Of all classes.
        shrinkage: ``s`` in ``(0, 1]``; ``1`` makes the distance Euclidean up to a factor.

    Returns:
        ``[d, d]``, positive definite unless all classes are single points.

    Raises:
        ValueError: If ``shrinkage`` is out of range.
    """
    if not 0.0 < shrinkage <= 1.0:
        raise ValueError(f"shrinkage must lie in (0, 1], got {shrinkage}")
    counts = statistics.counts.to(statistics.sums.dtype)  # a root of integers is float32
    scaled = statistics.sums / counts.sqrt().unsqueeze(1)
    within = (outer - scaled.T @ scaled) / counts.sum()
    size = len(within)
    spread = (within.diagonal().mean()).clamp_min(torch.finfo(within.dtype).eps)
    identity = torch.eye(size, dtype=within.dtype, device=within.device)
    precision = torch.linalg.inv((1.0 - shrinkage) * within + shrinkage * spread * identity)
    symmetric: Tensor = 0.5 * (precision + precision.T)
    return symmetric


def clip_rows(embeddings: Tensor, max_norm: float) -> Tensor:
    """Embeddings with norms of at most ``max_norm``, so that one example moves a sum no further.

    Args:
        embeddings: ``[n, d]``.
        max_norm: Largest Euclidean norm, positive.
    """
    norms = embeddings.norm(dim=1, keepdim=True).clamp_min(torch.finfo(embeddings.dtype).tiny)
    clipped: Tensor = embeddings * (max_norm / norms).clamp_max(1.0)
    return clipped


def open_scores(scores: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Scores of known classes spread over all class ids; unknown classes get minus infinity.

    Args:
        scores: ``[n, k]``.
        classes: Class of every column, ``[k]``.
        num_classes: ``K``.

    Returns:
        ``[n, K]``.
    """
    spread = scores.new_full((len(scores), num_classes), -torch.inf)
    spread[:, classes] = scores
    return spread
