"""The evaluation points of a mission: what is told apart before and after the clients' merge.

Three sets of classes are looked at: the base, the field's classes that somebody has met before, and
those of a client's mission. Every set is tested among all classes that the model knows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.arrays import Records, num_bytes
from fedsim.data import Indices, Shard
from fedsim.scenario import Scenario
from fedsim.state import ClientState
from fedsim.wire import Download

if TYPE_CHECKING:  # it imports this module
    from fedsim.client import Client

BATCH = 512
Scorer = Callable[[Indices], Tensor]  # places in the test data, [n], to scores of classes, [n, K]


class FieldTest:
    """Accuracy on the test data of base, known and new classes.

    Inputs are taken as they look in experience 0, so the scenario must not change them over time.

    Args:
        scenario: Where the test data come from.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150: a client's copy is tested
        after its own mission and before the merge, the server after the merge.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario

    def known(self, experiences: int) -> Tensor:
        """Classes that occur in the first so many experiences, over all clients, ascending."""
        labels = {label for e in range(experiences) for label in self._scenario.classes(e)}
        return torch.tensor(sorted(labels), dtype=torch.int64)

    def before(self, scorer: Scorer, known: Tensor, mission: Tensor) -> dict[str, float]:
        """What a client's copy can do that knows its own mission and nobody else's yet.

        Args:
            scorer: The copy.
            known: Classes that were known before, ``[k]``.
            mission: Classes of the client's mission, ``[m]``.

        Returns:
            ``before/base``, ``before/field`` (known classes of the field that are not of the
            mission), ``before/mission``, ``before/mean`` of these three, and
            ``before/mission_among_mission`` with the mission's classes as only candidates; NaN
            for a set without test data.
        """
        base = self._scenario.base_classes
        asked = _Answers(self._scenario, scorer, torch.cat([known, mission]))
        values = {
            "base": asked.accuracy(known[known < base]),
            "field": asked.accuracy(known[(known >= base) & ~torch.isin(known, mission)]),
            "mission": asked.accuracy(mission),
        }
        values["mean"] = mean_of(list(values.values()))
        values["mission_among_mission"] = asked.accuracy(mission, among=mission)
        return {f"before/{name}": value for name, value in values.items()}

    def after(self, scorer: Scorer, known: Tensor) -> dict[str, float]:
        """What the server can do after the merge.

        Args:
            scorer: What the server holds.
            known: Classes that anybody has met, ``[k]``.

        Returns:
            ``after/base``, ``after/field``, ``after/field_among_field`` with the field's known
            classes as only candidates, and ``known_classes``, their number with the base.
        """
        base = self._scenario.base_classes
        field = known[known >= base]
        asked = _Answers(self._scenario, scorer, known)
        return {
            "after/base": asked.accuracy(known[known < base]),
            "after/field": asked.accuracy(field),
            "after/field_among_field": asked.accuracy(field, among=field),
            "known_classes": len(known),
        }


class _Answers:
    """Scores of the test data of some classes, asked for once."""

    def __init__(self, scenario: Scenario, scorer: Scorer, classes: Tensor) -> None:
        targets = scenario.targets("test")
        rows = torch.isin(targets, classes).nonzero().flatten()
        self._targets = targets[rows]
        self._scores = scorer(rows.numpy()) if len(rows) else torch.empty(0, 0)

    def accuracy(self, classes: Tensor, *, among: Tensor | None = None) -> float:
        """Share of right answers on the test data of the classes; NaN without any."""
        rows = torch.isin(self._targets, classes)
        if not bool(rows.any()):
            return math.nan
        scores, targets = self._scores[rows], self._targets[rows]
        if among is not None:
            closed = torch.ones(scores.shape[1], dtype=torch.bool)
            closed[among] = False
            scores = scores.masked_fill(closed, -torch.inf)
        return float((scores.argmax(1) == targets).double().mean())


def before_merge(
    client: "Client",
    shard: Shard,
    records: Records,
    seconds: float,
    down: Download,
    state: ClientState,
) -> dict[str, float]:
    """:func:`costs` of a client's round and, where models are tested, :meth:`FieldTest.before`.

    The client's model holds its copy afterwards.

    Args:
        client: Has just trained.
        shard: On what.
        records: What it sends.
        seconds: How long it trained.
        down: What it received.
        state: What it remembers.
    """
    classes = torch.unique(shard.targets)
    metrics = costs(down.records, records, seconds, len(classes))
    if client.setting.clock.evaluates(down.tick.round):
        copy = replace(down, records=client.alone(records, down))
        client.load(client.model, copy, state)
        test = FieldTest(client.scenario)
        known = test.known(down.tick.experience + (down.tick.step > 0))
        metrics |= test.before(_scorer(client, copy, state), known, classes)
    return metrics


def after_merge(client: "Client", down: Download, state: ClientState) -> dict[str, float]:
    """:meth:`FieldTest.after` of what the server holds, which the client has loaded."""
    test = FieldTest(client.scenario)
    return test.after(_scorer(client, down, state), test.known(down.tick.experience + 1))


def _scorer(client: "Client", down: Download, state: ClientState) -> Scorer:
    """Scores of any test data by the client's model as it is."""
    client.model.eval()

    @torch.no_grad()
    def scores(rows: Indices) -> Tensor:
        batches = client.scenario.build(rows, 0, "test").batches(BATCH)
        parts = [client.predict(client.model, client.on_device(b), down, state) for b in batches]
        return torch.cat(parts).cpu()

    return scores


def costs(down: Records, up: Records, seconds: float, classes: int) -> dict[str, float]:
    """What a client's round costs per class of its data.

    Args:
        down: What it received.
        up: What it sends.
        seconds: How long its own work took.
        classes: Number of classes in its data.

    Returns:
        ``update_s_per_class``, ``download_bytes_per_class`` and ``upload_bytes_per_class``; bytes
        are those of tensor elements.
    """
    each = max(classes, 1)
    return {
        "update_s_per_class": seconds / each,
        "download_bytes_per_class": sum(num_bytes(part) for part in down.values()) / each,
        "upload_bytes_per_class": sum(num_bytes(part) for part in up.values()) / each,
    }


def mean_of(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
