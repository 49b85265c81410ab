import math

import pytest
import torch

from fedsim.metrics import explained_forgetting
from fedsim.scoring import Candidates, Score


class Cut:
    num_experiences, num_classes = 3, 4

    def classes(self, experience):
        return [[0, 1], [2], [3]][experience]


def test_fewer_candidates_make_the_question_easier():
    scores = torch.tensor([[5.0, 1.0, 9.0, 7.0], [2.0, 8.0, 1.0, 9.0]])
    score = Candidates(Cut()).score(scores, torch.tensor([0, 1]), 0)
    assert (score.correct, score.among_met, score.among_own) == (0, 2, 2)
    score = Candidates(Cut()).score(scores[:1], torch.tensor([2]), 1)
    assert (score.correct, score.among_met, score.among_own) == (1, 1, 1)
    score = Candidates(Cut()).score(torch.tensor([[8.0, 0.0, 7.0, 9.0]]), torch.tensor([2]), 1)
    assert (score.correct, score.among_met, score.among_own) == (0, 0, 1)


def test_a_class_the_model_does_not_know_is_never_right():
    unknown = torch.full((2, 4), -torch.inf)  # argmax says class 0
    assert Candidates(Cut()).score(unknown, torch.tensor([0, 1]), 0) == Score()
    partly = torch.tensor([[-torch.inf, 1.0, -torch.inf, -torch.inf]])
    assert Candidates(Cut()).score(partly, torch.tensor([2]), 1).correct == 0


def test_the_loss_is_over_known_classes():
    scores = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [0.0, 0.0, -torch.inf, -torch.inf]])
    score = Candidates(Cut()).score(scores, torch.tensor([1, 2]), 0)
    assert score.known == 1
    assert score.loss == pytest.approx(math.log(2))


def row(t, e, accuracy, among_met):
    return {
        "round": t + 1,
        "experience": t,
        "client": None,
        "eval_experience": e,
        "accuracy": accuracy,
        "accuracy_among_met": among_met,
        "num_examples": 10,
    }


def test_forgetting_splits_into_more_candidates_and_a_changed_model():
    rows = [row(0, 0, 0.9, 0.9), row(1, 0, 0.5, 0.8), row(1, 1, 0.7, 0.7)]
    parts = explained_forgetting(rows)
    assert parts["forgetting_unexplained"] == pytest.approx(0.1)
    assert parts["forgetting_explained"] == pytest.approx(0.3)


def test_rows_without_candidates_explain_nothing():
    plain = [{k: v for k, v in row(0, 0, 1.0, 1.0).items() if k != "accuracy_among_met"}]
    assert explained_forgetting(plain) == {}
    assert explained_forgetting([]) == {}
