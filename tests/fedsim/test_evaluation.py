import math

import pytest

from fedsim.evaluation import Evaluation


def row(round_, client, accuracy, examples, val=None, val_examples=10, experience=0):
    measured = {} if val is None else {"val_accuracy": val, "val_examples": val_examples}
    return {
        "round": round_,
        "experience": experience,
        "client": client,
        "accuracy": accuracy,
        "num_examples": examples,
        **measured,
    }


def test_clients_weigh_by_examples_or_equally():
    rows = [row(1, 0, 1.0, 30), row(1, 1, 0.0, 10), row(1, 2, None, 0), row(1, 3, math.nan, 0)]
    assert Evaluation().accuracy(rows) == pytest.approx(0.75)
    assert Evaluation(weighting="clients").accuracy(rows) == pytest.approx(0.5)


def test_a_clients_experiences_weigh_by_examples_before_clients_weigh_equally():
    rows = [row(1, 0, 1.0, 30), row(1, 0, 0.0, 10), row(1, 1, 0.25, 1)]
    assert Evaluation(weighting="clients").accuracy(rows) == pytest.approx(0.5)


def test_the_first_round_with_the_best_validation_accuracy_is_chosen():
    rows = [
        row(1, 0, 0.9, 5, val=0.2),
        row(2, 0, 0.1, 5, val=0.70001),
        row(3, 0, 0.2, 5, val=0.70002),
        row(4, 0, 0.3, 5, val=0.6),
    ]
    assert Evaluation(selection="best_validation").chosen_round(rows) == 2
    assert Evaluation().chosen_round(rows) == 4


def test_validation_is_weighted_like_the_test():
    rows = [
        row(1, 0, 0.5, 5, val=1.0, val_examples=90),
        row(1, 1, 0.5, 5, val=0.0, val_examples=10),
        row(2, 0, 0.5, 5, val=0.6, val_examples=90),
        row(2, 1, 0.5, 5, val=0.6, val_examples=10),
    ]
    assert Evaluation(selection="best_validation").chosen_round(rows) == 1
    equal = Evaluation(selection="best_validation", weighting="clients")
    assert equal.chosen_round(rows) == 2


def test_only_rounds_of_the_last_experience_are_candidates():
    rows = [row(1, 0, 0.5, 5, val=0.9), row(2, 0, 0.5, 5, val=0.4, experience=1)]
    assert Evaluation(selection="best_validation").chosen_round(rows) == 2


def test_nothing_measured_gives_round_zero():
    assert Evaluation(selection="best_validation").chosen_round([]) == 0
    assert math.isnan(Evaluation().accuracy([]))


@pytest.mark.parametrize("name", ["when", "selection", "weighting"])
def test_an_unknown_choice_is_named(name):
    with pytest.raises(ValueError, match=f"evaluation.{name} must be"):
        Evaluation(**{name: "sometimes"})
