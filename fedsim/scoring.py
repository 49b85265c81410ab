"""Correct predictions among all classes, and among fewer candidates, an easier question."""

from collections.abc import Sequence
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
        correct, among_own, among_met, losses, known = self.marks(scores, targets, experience)
        return Score(
            correct=int(correct.sum()),
            among_own=int(among_own.sum()),
            among_met=int(among_met.sum()),
            loss=float(losses.sum()),
            known=int(known.sum()),
        )

    def marks(self, scores: Tensor, targets: Tensor, experience: int) -> tuple[Tensor, ...]:
        """What every example adds to each entry of a :class:`Score`, in their order, ``[n]``."""
        own, met = (mask[experience].to(scores.device) for mask in (self.own, self.met))
        true = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
        known = true > -torch.inf
        losses = torch.zeros_like(true)
        losses[known] = functional.cross_entropy(scores[known], targets[known], reduction="none")
        return (
            _right(scores, targets, known),
            _right(scores.masked_fill(~own, -torch.inf), targets, known & own[targets]),
            _right(scores.masked_fill(~met, -torch.inf), targets, known & met[targets]),
            losses,
            known,
        )


def _right(scores: Tensor, targets: Tensor, possible: Tensor) -> Tensor:
    """Whether an example's class has the largest score; an impossible class is never right."""
    return (scores.argmax(dim=1) == targets) & possible


def ratios(numerators: Sequence[float], denominators: Sequence[int]) -> list[float]:
    """Quotients, NaN where there is nothing to divide by."""
    pairs = zip(numerators, denominators, strict=True)
    return [a / b if b else float("nan") for a, b in pairs]
