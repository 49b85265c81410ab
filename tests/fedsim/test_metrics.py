import importlib
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedsim import metrics

NAN = math.nan
MATRIX = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.5, 0.7]])


def row(round_, t, e, accuracy, *, client=0, n=10):
    return {
        "round": round_,
        "experience": t,
        "client": client,
        "eval_experience": e,
        "accuracy": accuracy,
        "loss": 1.0,
        "num_examples": n,
    }


def test_figures_of_a_hand_matrix():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.6 + 0.5 + 0.7) / 3)
    assert metrics.average_incremental_accuracy(MATRIX) == pytest.approx((0.9 + 0.75 + 0.6) / 3)
    assert metrics.forgetting(MATRIX) == pytest.approx((0.3 + 0.3) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-0.3 - 0.3) / 2)
    assert metrics.forward_transfer(MATRIX, [0.5, 0.1, 0.15]) == pytest.approx((0.1 + 0.15) / 2)


def test_forgetting_counts_from_the_best_accuracy_and_not_from_the_first():
    matrix = [[0.5, 0.0, 0.0], [0.8, 0.6, 0.0], [0.4, 0.6, 0.9]]
    assert metrics.forgetting(matrix) == pytest.approx((0.4 + 0.0) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx((-0.1 + 0.0) / 2)


def test_forgetting_is_negative_when_old_experiences_end_at_their_best():
    assert metrics.forgetting([[0.5, 0.0], [0.7, 0.9]]) == pytest.approx(-0.2)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_agreement_with_avalanche(size, seed):
    reference = importlib.import_module("avalanche.evaluation.functional").forgetting
    matrix = np.random.default_rng(seed).random((size, size))
    expected = reference(matrix)[-1, :-1].mean()
    assert metrics.backward_transfer(matrix) == pytest.approx(-expected)
    np.fill_diagonal(matrix, matrix.max(axis=0))  # now each experience is best at its own time
    expected = reference(matrix)[-1, :-1].mean()
    assert metrics.forgetting(matrix) == pytest.approx(expected)


def test_a_single_experience_has_an_accuracy_only():
    assert metrics.average_accuracy([[0.4]]) == pytest.approx(0.4)
    assert metrics.average_incremental_accuracy([[0.4]]) == pytest.approx(0.4)
    assert math.isnan(metrics.forgetting([[0.4]]))
    assert math.isnan(metrics.backward_transfer([[0.4]]))
    assert math.isnan(metrics.forward_transfer([[0.4]], [0.1]))


@pytest.mark.filterwarnings("error")
def test_cells_that_were_not_measured_are_left_out():
    matrix = [[0.9, NAN, NAN], [NAN, 0.8, NAN], [0.6, NAN, 0.7]]
    assert metrics.average_accuracy(matrix) == pytest.approx(0.65)
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx((0.9 + 0.8 + 0.65) / 3)
    assert metrics.forgetting(matrix) == pytest.approx(0.3)
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.3)
    assert math.isnan(metrics.forward_transfer(matrix, [0.1, 0.1, 0.1]))
    nothing = np.full((3, 3), NAN)
    assert math.isnan(metrics.average_accuracy(nothing))
    assert math.isnan(metrics.average_incremental_accuracy(nothing))
    assert math.isnan(metrics.forgetting(nothing))


@pytest.mark.parametrize("matrix", [[0.1, 0.2], [[0.1, 0.2]], np.zeros((0, 0))])
def test_matrix_must_be_square(matrix):
    for figure in (metrics.average_accuracy, metrics.forgetting, metrics.backward_transfer):
        with pytest.raises(ValueError, match=r"shape \[E, E\]"):
            figure(matrix)


def test_baseline_must_match_the_stream_or_be_absent():
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        metrics.forward_transfer(MATRIX, [0.1, 0.1])
    assert math.isnan(metrics.forward_transfer(MATRIX, []))


def test_matrix_weights_clients_by_examples_or_equally():
    rows = [row(2, 0, 0, 1.0, client=0, n=30), row(2, 0, 0, 0.0, client=1, n=10)]
    assert_allclose(metrics.accuracy_matrix(rows), [[0.75]])
    assert_allclose(metrics.accuracy_matrix(rows, weighting="clients"), [[0.5]])
    with pytest.raises(ValueError, match="examples or clients, got 'rounds'"):
        metrics.accuracy_matrix(rows, weighting="rounds")


def test_matrix_takes_the_last_evaluation_of_each_experience():
    rows = [
        row(4, 1, 1, 0.7),
        row(4, 1, 0, 0.6),
        row(1, 0, 0, 0.1),
        row(2, 0, 0, 0.9),
        row(3, 1, 1, 0.2),
    ]
    assert_allclose(metrics.accuracy_matrix(rows), [[0.9, NAN], [0.6, 0.7]])


def test_clients_of_an_earlier_round_do_not_mix_into_the_last():
    rows = [row(1, 0, 0, 0.1, client=0), row(2, 0, 0, 0.9, client=1)]
    assert_allclose(metrics.accuracy_matrix(rows), [[0.9]])


@pytest.mark.parametrize("missing", [None, NAN])
def test_evaluations_without_test_data_carry_no_weight(missing):
    rows = [row(1, 0, 0, 0.8), row(1, 0, 0, missing, client=1), row(1, 0, 1, missing, client=1)]
    rows.append(row(1, 0, 0, 0.0, client=2, n=0))
    for weighting in ("examples", "clients"):
        matrix = metrics.accuracy_matrix(rows, weighting=weighting)
        assert_allclose(matrix, [[0.8, NAN], [NAN, NAN]])


def test_round_zero_is_the_baseline_and_not_in_the_matrix():
    rows = [
        row(0, -1, 0, 0.2, client=None, n=10),
        row(0, -1, 2, 0.3, client=None, n=10),
        row(1, 0, 0, 0.9, client=None),
    ]
    matrix = metrics.accuracy_matrix(rows)
    assert_allclose(matrix, [[0.9, NAN, NAN]] + [[NAN] * 3] * 2)
    assert_allclose(metrics.baseline_accuracy(rows, num_experiences=3), [0.2, NAN, 0.3])
    assert_allclose(metrics.baseline_accuracy(rows[2:], num_experiences=2), [NAN, NAN])


def test_length_of_the_stream_can_be_given_and_is_checked():
    assert metrics.accuracy_matrix([row(1, 0, 0, 0.5)], num_experiences=3).shape == (3, 3)
    assert metrics.accuracy_matrix([]).shape == (0, 0)
    with pytest.raises(ValueError, match="experience 2 in a stream of 2"):
        metrics.accuracy_matrix([row(1, 0, 2, 0.5)], num_experiences=2)


def test_rows_of_clients_and_server_do_not_mix():
    with pytest.raises(ValueError, match="mixed"):
        metrics.accuracy_matrix([row(1, 0, 0, 0.5), row(1, 0, 0, 0.5, client=None)])


@pytest.mark.parametrize(
    ("clients", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (100, 10)]
)
def test_worst_decile_rounds_up_to_whole_clients(clients, worst):
    values = np.random.default_rng(0).permutation(clients) / 100
    assert metrics.worst_decile(values) == pytest.approx(np.arange(worst).mean() / 100)


def test_clients_without_test_data_are_no_part_of_the_fairness_figures():
    assert metrics.worst_decile([0.9, NAN, 0.4]) == pytest.approx(0.4)
    assert metrics.spread([0.2, NAN, 0.6]) == pytest.approx(0.2)
    assert metrics.spread([0.0, 1.0]) == pytest.approx(0.5)
    assert math.isnan(metrics.worst_decile([NAN]))
    assert math.isnan(metrics.spread([]))
