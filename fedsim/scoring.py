"""Correct predictions among all classes, and among fewer candidates, an easier question."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over test examples.

    Attributes:
        correct: Right among all classes.
        among_own: Right among the classes of the example's own experience.
        among_met: Right among the classes of the scenario's experiences up to that one.
        loss: Summed cross-entropy over the examples whose class the model knows.
        known: Number of those examples.
    """

    correct: int = 0
    among_own: int = 0
    among_met: int = 0
    loss: float = 0.0
    known: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            correct=self.correct + other.correct,
            among_own=self.among_own + other.among_own,
            among_met=self.among_met + other.among_met,
            loss=self.loss + other.loss,
            known=self.known + other.known,
        )


class Candidates:
    """Which classes an example of an experience may be told apart from.

    Args:
        scenario: Says which classes occur when.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario

    @cached_property
    def own(self) -> Tensor:
        """Classes of every experience, bool ``[E, K]``."""
        scenario = self._scenario
        own = torch.zeros(scenario.num_experiences, scenario.num_classes, dtype=torch.bool)
        for experience in range(scenario.num_experiences):
            own[experience, scenario.classes(experience)] = True
        return own

    @cached_property
    def met(self) -> Tensor:
        """Classes of every experience and those numbered before it, bool ``[E, K]``."""
        return self.own.cumsum(0) > 0

    def score(self, scores: Tensor, targets: Tensor, experience: int) -> Score:
        """The score of examples of one experience.

        Args:
            scores: ``[n, K]``; minus infinity marks classes the model does not know.
            targets: ``[n]``.
            experience: Where the examples come from.
        """
        own, met = (mask[experience].to(scores.device) for mask in (self.own, self.met))
        true = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
        known = true > -torch.inf
        losses = functional.cross_entropy(scores[known], targets[known], reduction="sum")
        return Score(
            correct=_right(scores, targets, known),
            among_own=_right(scores.masked_fill(~own, -torch.inf), targets, known & own[targets]),
            among_met=_right(scores.masked_fill(~met, -torch.inf), targets, known & met[targets]),
            loss=float(losses),
            known=int(known.sum()),
        )


def _right(scores: Tensor, targets: Tensor, possible: Tensor) -> int:
    """Examples whose class has the largest score; an impossible class is never right."""
    return int(((scores.argmax(dim=1) == targets) & possible).sum())
