"""Correct predictions among all classes, and among fewer candidates, an easier question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.scenario import Scenario, Split
from fedsim.wire import Metrics


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

    @classmethod
    def of(cls, sums: Sequence[float]) -> "Score":
        """From sums of what :meth:`Candidates.marks` gives."""
        correct, among_own, among_met, loss, known = sums
        return cls(
            correct=int(correct),
            among_own=int(among_own),
            among_met=int(among_met),
            loss=loss,
            known=int(known),
        )

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
        return Score.of([float(mark.sum()) for mark in self.marks(scores, targets, experience)])

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


def measured(found: Mapping[Split, tuple[Sequence[Score], Sequence[int]]]) -> Metrics:
    """What :meth:`fedsim.client.Client.measure` tells of a client.

    Args:
        found: For ``test``, and for ``val`` where runs are judged by it, the score and the number
            of examples of every experience.
    """
    scores, sizes = found["test"]
    metrics: Metrics = {
        "accuracy": ratios([s.correct for s in scores], sizes),
        "accuracy_among_own": ratios([s.among_own for s in scores], sizes),
        "accuracy_among_met": ratios([s.among_met for s in scores], sizes),
        "loss": ratios([s.loss for s in scores], [s.known for s in scores]),
        "examples": [float(n) for n in sizes],
    }
    if "val" in found:
        scores, sizes = found["val"]
        metrics["val_accuracy"] = ratios([s.correct for s in scores], sizes)
        metrics["val_examples"] = [float(n) for n in sizes]
    return metrics


def ratios(numerators: Sequence[float], denominators: Sequence[int]) -> list[float]:
    """Quotients, NaN where there is nothing to divide by."""
    pairs = zip(numerators, denominators, strict=True)
    return [a / b if b else float("nan") for a, b in pairs]
