"""Which of a client's examples belong to which experience."""

from typing import Protocol

import numpy as np

from fedsim.data import Indices
from fedsim.scenario import Split
from scenarios.holdings import Holdings


class Membership(Protocol):
    """Cuts one split of a data set over time."""

    def pick(self, own: Indices, experience: int) -> Indices:
        """Those of one client's examples that belong to the experience, ascending."""
        ...

    def pool(self, holdings: Holdings, split: Split, experience: int) -> Indices:
        """All clients' examples of the experience, ascending."""
        ...


class Labelled:
    """An example belongs to one experience, the same whoever holds it.

    Args:
        experiences: Experience of every example, ``[N]``; ``-1`` is never seen.
    """

    def __init__(self, *, experiences: Indices) -> None:
        self._experiences = experiences.astype(np.int32)

    def pick(self, own: Indices, experience: int) -> Indices:
        """See :meth:`Membership.pick`."""
        picked: Indices = own[self._experiences[own] == experience]
        return picked

    def pool(self, holdings: Holdings, split: Split, experience: int) -> Indices:
        """See :meth:`Membership.pool`."""
        del holdings, split
        return np.flatnonzero(self._experiences == experience)


class Everywhere:
    """Every example belongs to every experience.

    Args:
        num_examples: Size of the split ``N``.
    """

    def __init__(self, *, num_examples: int) -> None:
        self._num_examples = num_examples

    def pick(self, own: Indices, experience: int) -> Indices:
        """See :meth:`Membership.pick`."""
        del experience
        return own

    def pool(self, holdings: Holdings, split: Split, experience: int) -> Indices:
        """See :meth:`Membership.pool`."""
        del holdings, split, experience
        return np.arange(self._num_examples)


class Cut:
    """Each client's examples are cut at random into parts of equal size, one per experience.

    Sizes differ by one at most. A client with fewer examples than experiences has empty
    experiences, at places that differ between clients. Where clients share examples, the pooled
    data of every experience is the whole pool, since any example may be in any part.

    Args:
        num_examples: Size of the split ``N``.
        num_experiences: Number of parts ``E``.
        rng: Draws the random order in which the examples are cut.
    """

    def __init__(
        self, *, num_examples: int, num_experiences: int, rng: np.random.Generator
    ) -> None:
        self._keys = rng.permutation(num_examples)
        self._num_experiences = num_experiences

    def pick(self, own: Indices, experience: int) -> Indices:
        """See :meth:`Membership.pick`."""
        parts = self._parts(own, np.zeros(len(own), np.int64))
        picked: Indices = own[parts == experience]
        return picked

    def pool(self, holdings: Holdings, split: Split, experience: int) -> Indices:
        """See :meth:`Membership.pool`."""
        owners = holdings.owners(split)
        everything = np.arange(len(self._keys))
        if owners is None:
            return everything
        return np.flatnonzero(self._parts(everything, owners) == experience)

    def _parts(self, examples: Indices, owners: Indices) -> Indices:
        """Part of every example: ``floor((rank + start) * E / n)`` inside its owner's data.

        ``start`` lies in ``[0, 1)`` and is the sum of the owner's keys modulo ``N``, over ``N``.
        """
        if len(examples) == 0:
            return np.empty(0, np.int64)
        keys, total = self._keys[examples], len(self._keys)
        sizes = np.bincount(owners)
        order = np.lexsort((keys, owners))
        ranks = np.empty(len(examples), np.int64)
        ranks[order] = np.arange(len(examples)) - (np.cumsum(sizes) - sizes)[owners[order]]
        starts = np.bincount(owners, weights=keys).astype(np.int64) % total
        scaled = (ranks * total + starts[owners]) * self._num_experiences
        return scaled // (sizes[owners] * total)
