"""Against SciPy on tables that one can write down."""

import math

import numpy as np
import pytest
from scipy import stats

from fedsim.statistics import average_ranks, holm, mean_interval, paired_test

A = [0.81, 0.79, 0.84, 0.80, 0.86]
B = [0.78, 0.80, 0.79, 0.77, 0.81]
C = [0.70, 0.72, 0.69, 0.75, 0.71]


def test_the_interval_is_students():
    interval = mean_interval(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=np.mean(A), scale=stats.sem(A))
    assert interval.mean == pytest.approx(0.82)
    assert interval.mean - interval.half == pytest.approx(low)
    assert interval.mean + interval.half == pytest.approx(high)


def test_two_values_give_the_interval_of_the_tables():
    # t with one degree of freedom is 12.706; s / sqrt(2) of {0, 2} is 1
    assert mean_interval([0.0, 2.0]).half == pytest.approx(12.706, abs=1e-3)


def test_one_value_has_a_mean_and_no_interval():
    interval = mean_interval([0.5, math.nan])
    assert (interval.mean, interval.count) == (0.5, 1)
    assert math.isnan(interval.half)
    assert mean_interval([]).count == 0


def test_paired_tests_are_scipys():
    test = paired_test(A, B)
    assert test.t_p == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert test.wilcoxon_p == pytest.approx(stats.wilcoxon(A, B).pvalue)
    assert test.difference.mean == pytest.approx(0.03)


def test_pairs_with_a_gap_are_left_out():
    test = paired_test([*A, math.nan], [*B, 0.1])
    assert test.t_p == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert math.isnan(paired_test([0.1], [0.2]).t_p)


def test_equal_methods_are_not_told_apart():
    assert paired_test(A, A).t_p == 1.0
    assert paired_test(A, A).wilcoxon_p == 1.0


def test_pairs_must_have_one_length():
    with pytest.raises(ValueError, match="one shape"):
        paired_test([1.0, 2.0], [1.0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0


def test_ranks_by_hand_and_friedman_as_scipy():
    ranks = average_ranks(np.array([A, B, C]).T)
    assert ranks.ranks == pytest.approx((1.2, 1.8, 3.0))
    assert ranks.friedman_p == pytest.approx(stats.friedmanchisquare(A, B, C).pvalue)
    assert average_ranks([[1.0, 1.0, 2.0]], higher_is_better=False).ranks == (1.5, 1.5, 3.0)


def test_blocks_with_a_gap_do_not_count():
    assert average_ranks([[1.0, 2.0], [math.nan, 1.0]]).blocks == 1
