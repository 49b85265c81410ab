"""What repeated runs allow one to say: intervals, paired tests, ranks. All by SciPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds and how sure it is.

    Attributes:
        mean: Mean of the values; NaN without any.
        half: Half the width of the confidence interval; NaN with fewer than two values.
        count: Number of values.
    """

    mean: float
    half: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Two methods on the same seeds.

    Attributes:
        difference: Mean of ``a - b`` with its interval.
        t_p: p-value of the paired t-test, two-sided; NaN with fewer than two pairs.
        wilcoxon_p: p-value of Wilcoxon's signed-rank test, two-sided; NaN with fewer than two.
    """

    difference: Interval
    t_p: float
    wilcoxon_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Average ranks of methods over blocks; 1 is best.

    Attributes:
        ranks: One average rank per method.
        friedman_p: p-value of Friedman's test that all methods are alike; NaN with fewer than
            three methods or two blocks.
        blocks: Number of blocks in which every method was measured.
    """

    ranks: tuple[float, ...]
    friedman_p: float
    blocks: int


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean and half-width of Student's t interval, ``t_{n-1} * s / sqrt(n)``.

    Args:
        values: Measurements, shape ``[n]``; NaN are left out.
        confidence: Coverage, in ``(0, 1)``.
    """
    present = np.asarray(values, dtype=np.float64)
    present = present[~np.isnan(present)]
    n = len(present)
    if n == 0:
        return Interval(mean=math.nan, half=math.nan, count=0)
    mean = float(present.mean())
    if n == 1:
        return Interval(mean=mean, half=math.nan, count=1)
    from scipy.special import stdtrit  # a hundred times faster to import than scipy.stats

    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Interval(mean=mean, half=quantile * float(present.std(ddof=1)) / math.sqrt(n), count=n)


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Compare two methods measured on the same seeds.

    Args:
        a: Measurements of one method, shape ``[n]``.
        b: Of the other, in the same order; pairs with a NaN are left out.

    Raises:
        ValueError: If the shapes differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"pairs must have one shape [n], got {first.shape} and {second.shape}")
    difference = (first - second)[~np.isnan(first - second)]
    interval = mean_interval(difference)
    if len(difference) < 2:
        return PairedTest(difference=interval, t_p=math.nan, wilcoxon_p=math.nan)
    if not difference.any():  # equal everywhere: nothing speaks against equality
        return PairedTest(difference=interval, t_p=1.0, wilcoxon_p=1.0)
    from scipy import stats

    constant = bool(np.ptp(difference) == 0)  # no spread: the t statistic is infinite
    return PairedTest(
        difference=interval,
        t_p=0.0 if constant else float(stats.ttest_1samp(difference, 0.0).pvalue),
        wilcoxon_p=float(stats.wilcoxon(difference).pvalue),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of several tests' p-values; NaN stay and do not count.

    Source:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statistics, 1979.
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def average_ranks(table: ArrayLike, *, higher_is_better: bool = True) -> Ranks:
    """Average rank of every method over blocks such as scenarios, ties sharing their ranks.

    Args:
        table: One row per block, one column per method, ``[B, M]``; rows with NaN are left out.
        higher_is_better: Whether rank 1 goes to the largest value of a row.

    Source:
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"ranks need a table [blocks, methods], got shape {values.shape}")
    values = values[~np.isnan(values).any(axis=1)]
    blocks, methods = values.shape
    if blocks == 0:
        return Ranks(ranks=(math.nan,) * methods, friedman_p=math.nan, blocks=0)
    from scipy import stats

    ranked = stats.rankdata(-values if higher_is_better else values, axis=1)
    friedman = math.nan
    if methods >= 3 and blocks >= 2:
        same = bool((ranked == ranked[:, :1]).all())  # all tied: the statistic is 0 / 0
        friedman = 1.0 if same else float(stats.friedmanchisquare(*values.T).pvalue)
    return Ranks(ranks=tuple(ranked.mean(axis=0).tolist()), friedman_p=friedman, blocks=blocks)
