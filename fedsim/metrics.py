"""Figures of federated continual learning, as functions of an accuracy matrix.

``R[t, e]`` is the accuracy on the test data of experience ``e`` after experience ``t`` was learned,
a fraction in ``[0, 1]``; NaN where it was not measured. Cells that are NaN are left out of every
mean; a figure with nothing left, e.g. forgetting on a single experience, is NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
Weighting = Literal["examples", "clients"]


def accuracy_matrix(
    rows: Iterable[Mapping[str, Any]],
    *,
    num_experiences: int | None = None,
    weighting: Weighting = "examples",
) -> Matrix:
    """The accuracy matrix of a run.

    Row ``t`` comes from the last round in which the server was at experience ``t`` and there was an
    evaluation. Round 0, the untrained model, is left out.

    Args:
        rows: Evaluations, either all by clients or all by the server. Of each, the keys ``round``,
            ``experience`` (the server's position ``t``), ``client`` (None for the server),
            ``eval_experience``, ``accuracy`` (None or NaN without test data) and ``num_examples``
            are read.
        num_experiences: Length ``E`` of the stream; None takes the largest experience of the rows.
        weighting: ``examples`` weights clients by their test examples, ``clients`` equally.

    Returns:
        Accuracy, shape ``[E, E]``.

    Raises:
        ValueError: If rows of clients and of the server are mixed, an experience lies outside the
            stream or ``weighting`` is unknown.
    """
    if weighting not in ("examples", "clients"):
        raise ValueError(f"weighting must be examples or clients, got {weighting!r}")
    rows = list(rows)
    if len({row["client"] is None for row in rows}) > 1:
        raise ValueError("rows of clients and of the server are mixed; choose one of them")
    experiences = [int(row[key]) for row in rows for key in ("experience", "eval_experience")]
    longest = max(experiences, default=-1) + 1
    size = longest if num_experiences is None else num_experiences
    if longest > size:
        raise ValueError(f"rows name experience {longest - 1} in a stream of {size} experiences")
    last = _last_rounds(rows)
    sums, weights = np.zeros((size, size)), np.zeros((size, size))
    for row in rows:
        t, e = int(row["experience"]), int(row["eval_experience"])
        accuracy = math.nan if row["accuracy"] is None else float(row["accuracy"])
        if row["round"] != last.get(t) or row["num_examples"] == 0 or math.isnan(accuracy):
            continue
        weight = float(row["num_examples"]) if weighting == "examples" else 1.0
        sums[t, e] += weight * accuracy
        weights[t, e] += weight
    matrix: Matrix = np.full((size, size), math.nan)
    np.divide(sums, weights, out=matrix, where=weights > 0)
    return matrix


def baseline_accuracy(rows: Iterable[Mapping[str, Any]], *, num_experiences: int) -> Matrix:
    """Accuracy of the untrained model on each experience, from the evaluations of round 0.

    Args:
        rows: See :func:`accuracy_matrix`; rows of other rounds are left out.
        num_experiences: Length ``E`` of the stream.

    Returns:
        Example-weighted accuracy, shape ``[E]``; NaN where it was not measured.

    Raises:
        ValueError: As in :func:`accuracy_matrix`.
    """
    untrained = [{**row, "round": 1, "experience": 0} for row in rows if row["round"] == 0]
    baseline: Matrix = accuracy_matrix(untrained, num_experiences=num_experiences)[0]
    return baseline


def average_accuracy(matrix: ArrayLike) -> float:
    """Mean accuracy over all experiences at the end, ``mean_e R[E-1, e]``, in ``[0, 1]``.

    Args:
        matrix: Accuracy, shape ``[E, E]``.

    Source:
        ACC of Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017,
        arXiv:1706.08840.
    """
    return _mean(_square(matrix)[-1])


def average_incremental_accuracy(matrix: ArrayLike) -> float:
    """Mean over time of the accuracy on what was seen, ``mean_t mean_{e<=t} R[t, e]``, in [0, 1].

    Args:
        matrix: Accuracy, shape ``[E, E]``.

    Source:
        Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017,
        arXiv:1611.07725. The experiences seen so far weigh equally, as there, where all have the
        same number of classes.
    """
    matrix = _square(matrix)
    return _mean([_mean(row[: t + 1]) for t, row in enumerate(matrix)])


def forgetting(matrix: ArrayLike) -> float:
    """Mean loss against the best accuracy ever, ``mean_{e<E-1} (max_{t<E-1} R[t, e] - R[E-1, e])``.

    In ``[-1, 1]``, lower is better; negative if old experiences got better at the end. NaN for a
    single experience.

    Args:
        matrix: Accuracy, shape ``[E, E]``.

    Source:
        Chaudhry et al., Riemannian Walk for Incremental Learning, ECCV 2018, arXiv:1801.10112.
        Avalanche compares with ``R[e, e]`` instead of the maximum, which is
        ``-backward_transfer``; the two agree if no experience is best at another time than its own.
    """
    matrix = _square(matrix)
    best = np.fmax.reduce(matrix[:-1, :-1], axis=0, initial=math.nan)  # ignores NaN
    return _mean(best - matrix[-1, :-1])


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean change since an experience was learned, ``mean_{e<E-1} (R[E-1, e] - R[e, e])``.

    In ``[-1, 1]``, higher is better; negative is forgetting. NaN for a single experience.

    Args:
        matrix: Accuracy, shape ``[E, E]``.

    Source:
        BWT of Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840.
    """
    matrix = _square(matrix)
    return _mean((matrix[-1] - np.diagonal(matrix))[:-1])


def explained_forgetting(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What of the forgetting comes from having more classes to choose from, and what does not.

    With ``R`` the accuracy among all classes and ``M`` the accuracy among the classes met up to an
    experience, ``unexplained = mean_{e<E-1} (M[e, e] - M[E-1, e])``: the candidates stay the same,
    so a change is a change of the model. ``explained = -backward_transfer(R) - unexplained``.

    Args:
        rows: See :func:`accuracy_matrix`; ``accuracy_among_met`` is read as well.

    Returns:
        ``forgetting_explained`` and ``forgetting_unexplained``, or nothing where the rows do not
        say how the model does among the classes met.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150, tell the two apart in
        words: nearest prototypes get worse with the number of candidates, not by forgetting.
    """
    if not rows or any("accuracy_among_met" not in row for row in rows):
        return {}
    restricted = [{**row, "accuracy": row["accuracy_among_met"]} for row in rows]
    unexplained = -backward_transfer(accuracy_matrix(restricted))
    total = -backward_transfer(accuracy_matrix(rows))
    return {"forgetting_explained": total - unexplained, "forgetting_unexplained": unexplained}


def forward_transfer(matrix: ArrayLike, baseline: ArrayLike) -> float:
    """Mean advantage on an experience before it is learned, ``mean_{e>0} (R[e-1, e] - b[e])``.

    In ``[-1, 1]``, higher is better. NaN for a single experience.

    Args:
        matrix: Accuracy, shape ``[E, E]``.
        baseline: Accuracy ``b`` of the untrained model, shape ``[E]`` (see
            :func:`baseline_accuracy`), or empty where none was measured, which gives NaN.

    Raises:
        ValueError: If there is not one baseline per experience.

    Source:
        FWT of Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840.
    """
    matrix = _square(matrix)
    untrained = np.asarray(baseline, dtype=np.float64)
    if untrained.size == 0:
        return math.nan
    if untrained.shape != matrix.shape[:1]:
        raise ValueError(
            f"baseline must have one entry per experience, shape {matrix.shape[:1]}, got "
            f"{untrained.shape}"
        )
    return _mean(np.diagonal(matrix, offset=1) - untrained[1:])


def mean_numbers(parts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of every plain number over the parts that have it.

    Args:
        parts: What each client measured; lists are left out, and so is ``loss``, which is recorded
            elsewhere. NaN counts as not measured.
    """
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, int | float) and name != "loss" and not math.isnan(value):
                values.setdefault(name, []).append(float(value))
    return {name: sum(v) / len(v) for name, v in sorted(values.items())}


def worst_decile(values: ArrayLike) -> float:
    """Mean accuracy of the worst 10 % of the clients, at least of one, in ``[0, 1]``.

    Args:
        values: Accuracy of every client, shape ``[C]``; NaN for a client without test data. The
            number of clients is rounded up: the worst 2 of 11.

    Source:
        Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497.
    """
    present = np.sort(_present(values))
    return _mean(present[: -(-len(present) // 10)])


def spread(values: ArrayLike) -> float:
    """Standard deviation of the clients' accuracy (of the population, not a sample), in [0, 0.5].

    Args:
        values: Accuracy of every client, shape ``[C]``; NaN for a client without test data.

    Source:
        Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497, who
        report the variance.
    """
    present = _present(values)
    return float(present.std()) if len(present) else math.nan


def _last_rounds(rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The last evaluated round of each experience of the server."""
    last: dict[int, int] = {}
    for row in rows:
        if row["round"] > 0 and row["experience"] >= 0:
            t = int(row["experience"])
            last[t] = max(last.get(t, 0), int(row["round"]))
    return last


def _square(matrix: ArrayLike) -> Matrix:
    """The matrix as floats, once it is known to be square."""
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"the accuracy matrix must have shape [E, E], E >= 1, got {array.shape}")
    return array


def _present(values: ArrayLike) -> Matrix:
    """The values that are not NaN."""
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _mean(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    present = _present(values)
    return float(present.mean()) if len(present) else math.nan
