"""When models are tested, on which round they are judged, and how clients weigh."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedsim.metrics import Weighting

When = Literal["after_aggregation", "after_training"]
Selection = Literal["last", "best_validation"]
_DIGITS = 4  # accuracies this close are a tie, and the earlier round is taken

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What ``test_accuracy`` in a run's summary means.

    Attributes:
        when: ``after_aggregation`` tests what the server sends out, ``after_training`` what a
            client has after its local steps, before it uploads: no model is sent for testing then,
            and clients that do not train in a round are not tested in it.
        selection: ``last`` takes the last round, ``best_validation`` the round of the last
            experience with the highest validation accuracy, the first one on a tie.
        weighting: ``examples`` weighs clients by their test examples, ``clients`` equally.

    Source:
        ``after_training``, ``best_validation`` and ``clients`` are the protocol of Baek et al.,
        Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206; its code counts a
        client without test nodes as always right, here it does not count.
    """

    when: When = "after_aggregation"
    selection: Selection = "last"
    weighting: Weighting = "examples"

    def __post_init__(self) -> None:
        for name, choices in (("when", When), ("selection", Selection), ("weighting", Weighting)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(
                    f"evaluation.{name} must be {' or '.join(get_args(choices))}, got {value!r}"
                )

    @property
    def in_training(self) -> bool:
        """Whether clients are tested right after their local steps."""
        return self.when == "after_training"

    @property
    def validates(self) -> bool:
        """Whether clients are tested on validation data too."""
        return self.selection == "best_validation"

    def accuracy(self, rows: Rows, split: str = "test") -> float:
        """Accuracy over the rows' test or validation data; NaN without any.

        Args:
            rows: Evaluations with ``client``, ``accuracy`` and ``num_examples``, or for validation
                ``val_accuracy`` and ``val_examples``.
            split: ``test`` or ``val``.
        """
        names = (
            ("accuracy", "num_examples") if split == "test" else ("val_accuracy", "val_examples")
        )
        sums: dict[Any, tuple[float, float]] = {}
        for row in rows:
            value, examples = (row.get(name) for name in names)
            if value is None or math.isnan(value) or not examples:
                continue
            who = row["client"] if self.weighting == "clients" else None
            correct, total = sums.get(who, (0.0, 0.0))
            sums[who] = correct + value * examples, total + examples
        ratios = [correct / total for correct, total in sums.values()]
        return sum(ratios) / len(ratios) if ratios else math.nan

    def chosen_round(self, rows: Rows) -> int:
        """The round that a run is judged by; 0 without any evaluation."""
        rows = list(rows)
        last = max((row["round"] for row in rows), default=0)
        if not self.validates:
            return last
        experience = max((row["experience"] for row in rows), default=-1)
        by_round: dict[int, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["experience"] == experience:
                by_round.setdefault(row["round"], []).append(row)
        values = {r: round(self.accuracy(part, "val"), _DIGITS) for r, part in by_round.items()}
        known = [r for r in sorted(values) if not math.isnan(values[r])]
        return max(known, key=values.__getitem__, default=last)
