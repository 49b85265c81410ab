"""Missions: clients meet a few classes at a time, and nobody knows which ones there will be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data import Dataset, Indices, Shard
from fedsim.scenario import Scenario, Split
from fedsim.seeding import numpy_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Mission:
    """What a client brings home from a mission.

    Attributes:
        classes: Classes that a client draws, uniformly from those that are left to it.
        shots: Training examples of a class; fewer where fewer are left.
        replacement: Whether examples may be drawn again in a later mission or by another client;
            if not, no example is seen twice in the run, and classes run out.
        overlap: Whether clients of the same mission may draw the same class.
        recurring: Whether a class may come back in a later mission.
    """

    classes: int
    shots: int
    replacement: bool = False
    overlap: bool = True
    recurring: bool = True

    def __post_init__(self) -> None:
        for name in ("classes", "shots"):
            if getattr(self, name) < 1:
                raise ValueError(f"mission.{name} must be at least 1, got {getattr(self, name)}")


class Missions(Scenario):
    """Base classes that are known from the start, then missions to classes of the field.

    With base classes, experience 0 is the base: its training and test examples are dealt to the
    clients in turn. Every further experience is a mission: each client draws classes of the field
    and examples of them. A class's id is its number in the data set, whoever meets it and when, so
    the label space is open. Clients that join late do so by the clock, and clients that are not
    sampled miss their mission; nothing is drawn again.

    Test data of a client's mission are the test examples of its classes; pooled, those of the
    classes of all clients, each once.

    Args:
        dataset: The data.
        num_clients: Number of clients ``C``.
        num_experiences: Missions, plus one for the base where there is one.
        base_classes: Classes ``0..base_classes-1`` are the base; ``0`` for none.
        field_classes: Classes of the field, drawn from the others; None takes all of them.
        mission: What a client draws.
        evaluation_points: See :class:`fedsim.scenario.Scenario`.
        seed: Seed of the run.

    Raises:
        ValueError: If numbers are out of range, or the field runs out before the missions do.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150: many clients with
        overlapping, recurring classes without replacement; class by class is one client, one class
        per mission, ``mission.recurring=False``.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        num_clients: int,
        num_experiences: int,
        base_classes: int = 0,
        field_classes: int | None = None,
        mission: Mission,
        evaluation_points: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.num_clients = num_clients
        self.num_experiences = num_experiences
        self.num_classes = dataset.num_classes
        self.input_shape = tuple(dataset.train.take(np.zeros(1, np.int64)).shape[1:])
        self.base_classes = base_classes
        self.evaluation_points = evaluation_points
        self._has_base = int(base_classes > 0)
        self._check(field_classes)
        rng = numpy_generator(seed, "missions")
        field = np.arange(base_classes, dataset.num_classes)
        if field_classes is not None:
            field = np.sort(rng.permutation(field)[:field_classes])
        self.field = field.tolist()
        draw = _Draw(dataset.train.targets.numpy(), field, mission, rng)
        self._train, self._mission_classes = self._draw_all(draw)
        self._test_of = _members(dataset.test.targets.numpy(), dataset.num_classes)

    def mission_classes(self, client_id: int, experience: int) -> list[int]:
        """Classes of a client's mission, ascending; the base classes for the base."""
        if self._is_base(experience):
            return list(range(self.base_classes))
        return self._mission_classes[experience - self._has_base][client_id]

    def classes(self, experience: int) -> list[int]:
        """See :meth:`Scenario.classes`."""
        if self._is_base(experience):
            return list(range(self.base_classes))
        missions = self._mission_classes[experience - self._has_base]
        return sorted({label for classes in missions for label in classes})

    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """See :meth:`Scenario.indices`."""
        if not 0 <= experience < self.num_experiences:
            raise ValueError(
                f"experience must lie in [0, {self.num_experiences}), got {experience}"
            )
        if client_id is not None and not 0 <= client_id < self.num_clients:
            raise ValueError(f"client_id must lie in [0, {self.num_clients}), got {client_id}")
        if self._is_base(experience):
            base = np.flatnonzero(self.targets(split).numpy() < self.base_classes)
            return base if client_id is None else base[client_id :: self.num_clients]
        if split == "test":
            classes = (
                self.classes(experience)
                if client_id is None
                else self.mission_classes(client_id, experience)
            )
            return _joined(self._test_of[label] for label in classes)
        missions = self._train[experience - self._has_base]
        return np.unique(np.concatenate(missions)) if client_id is None else missions[client_id]

    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.build`."""
        del experience
        examples = self.dataset.train if split == "train" else self.dataset.test
        return Shard(
            inputs=examples.take(indices),
            targets=examples.targets[torch.from_numpy(indices)],
            tasks=None,
            indices=indices,
        )

    def targets(self, split: Split) -> Tensor:
        """See :meth:`Scenario.targets`."""
        return (self.dataset.train if split == "train" else self.dataset.test).targets

    def _is_base(self, experience: int) -> bool:
        return experience < self._has_base

    def _draw_all(self, draw: "_Draw") -> tuple[list[list[Indices]], list[list[list[int]]]]:
        """Examples and classes of every mission and client, ``[mission][client]``."""
        examples: list[list[Indices]] = []
        classes: list[list[list[int]]] = []
        for mission in range(self.num_experiences - self._has_base):
            drawn = draw.mission(self.num_clients)
            if not any(len(part) for _, part in drawn):
                raise ValueError(
                    f"the field of {len(self.field)} classes is used up after {mission} missions;"
                    f" set scenario.num_experiences to {mission + self._has_base} or fewer, or"
                    " scenario.mission.replacement=true"
                )
            examples.append([part for _, part in drawn])
            classes.append([labels for labels, _ in drawn])
        return examples, classes

    def _check(self, field_classes: int | None) -> None:
        if self.num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {self.num_clients}")
        if self.num_experiences <= self._has_base:
            raise ValueError(
                f"num_experiences must be at least {1 + self._has_base}, since experience 0 is"
                f" {'the base' if self._has_base else 'a mission'}; got {self.num_experiences}"
            )
        if not 0 <= self.base_classes < self.num_classes:
            raise ValueError(
                f"base_classes must leave some of the {self.num_classes} classes to the field, got"
                f" {self.base_classes}"
            )
        left = self.num_classes - self.base_classes
        if field_classes is not None and not 1 <= field_classes <= left:
            raise ValueError(f"field_classes must lie in [1, {left}], got {field_classes}")


class _Draw:
    """What is left of the field, and draws from it.

    Args:
        targets: Classes of the training examples.
        field: Classes of the field.
        rules: What a client draws.
        rng: Draws it.
    """

    def __init__(
        self, targets: Indices, field: Indices, rules: Mission, rng: np.random.Generator
    ) -> None:
        members = _members(targets, int(targets.max()) + 1)
        # shuffled once: without replacement the next examples are the next of the list
        self._members = {int(c): rng.permutation(members[c]) for c in field}
        self._used = dict.fromkeys(self._members, 0)
        self._over: set[int] = set()
        self._rules, self._rng = rules, rng

    def mission(self, num_clients: int) -> list[tuple[list[int], Indices]]:
        """Classes and training examples of every client in the next mission."""
        taken: set[int] = set()
        drawn = []
        for _ in range(num_clients):
            labels = self._labels(taken)
            taken.update(labels)
            drawn.append((labels, _joined(self._examples(label) for label in labels)))
        if not self._rules.recurring:
            self._over |= taken
        return drawn

    def _labels(self, taken: set[int]) -> list[int]:
        closed = self._over if self._rules.overlap else self._over | taken
        left = [
            label
            for label, members in self._members.items()
            if label not in closed and (self._rules.replacement or self._used[label] < len(members))
        ]
        count = min(self._rules.classes, len(left))
        return sorted(left[i] for i in self._rng.permutation(len(left))[:count].tolist())

    def _examples(self, label: int) -> Indices:
        members = self._members[label]
        if self._rules.replacement:
            return self._rng.permutation(members)[: self._rules.shots]
        start = self._used[label]
        self._used[label] = min(start + self._rules.shots, len(members))
        return members[start : self._used[label]]


def _members(targets: Indices, num_classes: int) -> list[Indices]:
    """Examples of every class, ascending."""
    order = np.argsort(targets, kind="stable")
    ends: NDArray[np.int64] = np.cumsum(np.bincount(targets, minlength=num_classes))
    return np.split(order, ends[:-1])


def _joined(parts: Iterable[Indices]) -> Indices:
    """All parts, ascending."""
    listed: Sequence[Indices] = list(parts)
    return np.sort(np.concatenate(listed)) if listed else np.empty(0, np.int64)
