"""Who holds which examples, without a Python object per client."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.data import Indices
from fedsim.scenario import Split
from fedsim.seeding import numpy_generator, words


class Holdings(Protocol):
    """The examples that every client holds, over all experiences."""

    def of(self, client_id: int, split: Split) -> Indices:
        """Examples of one client, ascending."""
        ...

    def of_each(self, client_ids: Sequence[int], split: Split) -> list[Indices]:
        """The same of several clients."""
        return [self.of(client_id, split) for client_id in client_ids]

    def owners(self, split: Split) -> Indices | None:
        """Client of every example, ``[N]``; None where clients may share examples."""
        ...


class Dealt(Holdings):
    """Every example belongs to exactly one client.

    The examples are grouped by client with one sort (compressed sparse rows), so a client costs
    eight bytes and its examples are a slice.

    Args:
        owners: Client of every example, shape ``[N]``, for either split.
        num_clients: Number of clients ``C``.
    """

    def __init__(self, *, owners: Mapping[Split, Indices], num_clients: int) -> None:
        self._order: dict[Split, Indices] = {}
        self._offsets: dict[Split, Indices] = {}
        for split, owner in owners.items():
            sizes = np.bincount(owner, minlength=num_clients)
            self._order[split] = np.argsort(owner, kind="stable")
            self._offsets[split] = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))

    def of(self, client_id: int, split: Split) -> Indices:
        """See :meth:`Holdings.of`."""
        offsets = self._offsets[split]
        return self._order[split][offsets[client_id] : offsets[client_id + 1]]

    def owners(self, split: Split) -> Indices:
        """See :meth:`Holdings.owners`."""
        sizes = np.diff(self._offsets[split])
        owners = np.empty(len(self._order[split]), np.int64)
        owners[self._order[split]] = np.repeat(np.arange(len(sizes)), sizes)
        return owners


class Whole(Holdings):
    """Every client holds all that there is.

    Args:
        sizes: Number of examples, for either split.
    """

    def __init__(self, sizes: Mapping[Split, int]) -> None:
        self._sizes = dict(sizes)

    def of(self, client_id: int, split: Split) -> Indices:
        """See :meth:`Holdings.of`."""
        del client_id
        return np.arange(self._sizes[split])

    def owners(self, split: Split) -> None:
        """See :meth:`Holdings.owners`: clients share examples."""
        del split


class Drawn(Holdings):
    """Every client draws its examples from the pool when asked: nothing is kept per client.

    Args:
        targets: Class of every example, shape ``[N]``, for either split.
        num_draws: Examples that a client draws from either split.
        alpha: Concentration of a client's own class proportions, ``p ~ Dir(alpha)`` over the
            classes, used for both splits; None draws uniformly. A class that runs out gives all
            it has, so a skewed client may hold fewer examples.
        seed: Seed of the run.
    """

    def __init__(
        self,
        *,
        targets: Mapping[Split, Indices],
        num_draws: Mapping[Split, int],
        alpha: float | None,
        seed: int,
    ) -> None:
        self._num_draws = dict(num_draws)
        self._alpha = alpha
        self._seed = seed
        self._sizes = {split: len(values) for split, values in targets.items()}
        self._num_classes = 1 + max(int(values.max(initial=0)) for values in targets.values())
        self._by_class = {s: np.argsort(t, kind="stable") for s, t in targets.items()}
        self._counts = {s: np.bincount(t, minlength=self._num_classes) for s, t in targets.items()}

    def of(self, client_id: int, split: Split) -> Indices:
        """See :meth:`Holdings.of`."""
        if self._alpha is None:
            return self.of_each([client_id], split)[0]
        n = self._num_draws[split]
        rng = numpy_generator(self._seed, "resample", split, client_id)
        proportions = dirichlet(
            numpy_generator(self._seed, "proportions", client_id), self._alpha, self._num_classes
        )
        available = self._counts[split]
        begins = np.cumsum(available) - available
        wanted = np.minimum(rng.multinomial(n, proportions), available)
        picks = [
            begins[c] + rng.choice(available[c], wanted[c], replace=False, shuffle=False)
            for c in np.flatnonzero(wanted)
        ]
        drawn = np.concatenate(picks) if picks else np.empty(0, np.int64)
        return np.sort(self._by_class[split][drawn])

    def of_each(self, client_ids: Sequence[int], split: Split) -> list[Indices]:
        """See :meth:`Holdings.of_each`; uniform draws are made in one go."""
        if self._alpha is not None:
            return super().of_each(client_ids, split)
        n = self._num_draws[split]
        drawn = words(n, self._seed, "resample", split, each=client_ids)
        return list(distinct(drawn, self._sizes[split]))

    def owners(self, split: Split) -> None:
        """See :meth:`Holdings.owners`: clients share examples."""
        del split


def distinct(drawn: NDArray[np.uint64], size: int) -> Indices:
    """Different numbers below ``size`` in every row, ascending; each subset is equally likely.

    Args:
        drawn: Uniform 64-bit numbers, ``[k, n]``.
        size: At least ``n``.

    Source:
        Floyd's sampling (Bentley and Floyd, Communications of the ACM 30(9), 1987): draw ``j`` is
        below ``size - n + j + 1``, and gives that bound's last number if it was drawn before.
    """
    n = drawn.shape[1]
    bounds = np.arange(size - n + 1, size + 1, dtype=np.uint64)
    values = (drawn % bounds).astype(np.int64)
    ordered = np.sort(values, axis=1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    for row in np.flatnonzero(repeats):
        taken: set[int] = set()
        for last, value in enumerate(values[row].tolist(), start=size - n):
            taken.add(last if value in taken else value)
        ordered[row] = sorted(taken)
    return ordered


def dirichlet(rng: np.random.Generator, alpha: float, size: int) -> NDArray[np.float64]:
    """One draw from a symmetric Dirichlet distribution that is finite for every ``alpha > 0``.

    Works with logarithms, ``log Gamma(alpha) = log Gamma(alpha + 1) + log(U) / alpha``, since
    plain gamma variates underflow to zero for small ``alpha``.

    Args:
        rng: Source of randomness.
        alpha: Concentration; small values put the mass on few entries.
        size: Number of entries.

    Returns:
        Proportions, shape ``[size]``, summing to one.
    """
    logs = np.log(rng.gamma(alpha + 1.0, size=size)) + np.log(1.0 - rng.random(size)) / alpha
    weights = np.exp(logs - logs.max())
    proportions: NDArray[np.float64] = weights / weights.sum()
    return proportions


def mirror(
    train_targets: Indices, train_owners: Indices, test_targets: Indices, rng: np.random.Generator
) -> Indices:
    """Owners of the test examples such that every client's classes follow its training classes.

    Systematic sampling, class by class: the test examples of a class are spread at equal steps,
    from a random start, over the training examples of the class sorted by client. No matrix of
    clients by classes is built. Test examples of a class without training examples go to random
    clients.

    Args:
        train_targets: Class of every training example, ``[N]``.
        train_owners: Client of every training example, ``[N]``.
        test_targets: Class of every test example, ``[M]``.
        rng: Source of randomness.

    Returns:
        Client of every test example, ``[M]``.
    """
    num_classes = 1 + int(max(train_targets.max(initial=-1), test_targets.max(initial=-1)))
    train_counts = np.bincount(train_targets, minlength=num_classes)
    test_counts = np.bincount(test_targets, minlength=num_classes)
    owners_by_class = train_owners[np.lexsort((train_owners, train_targets))]
    shuffled = rng.permutation(len(test_targets))
    by_class = shuffled[np.argsort(test_targets[shuffled], kind="stable")]
    sorted_targets = test_targets[by_class]
    ranks = np.arange(len(by_class)) - (np.cumsum(test_counts) - test_counts)[sorted_targets]
    step = train_counts / np.maximum(test_counts, 1)
    start = rng.random(num_classes)
    within = ((ranks + start[sorted_targets]) * step[sorted_targets]).astype(np.int64)
    within = np.minimum(within, np.maximum(train_counts[sorted_targets] - 1, 0))
    begins = (np.cumsum(train_counts) - train_counts)[sorted_targets]
    unseen = train_counts[sorted_targets] == 0
    owners = np.empty(len(test_targets), np.int64)
    source = np.where(unseen, rng.integers(len(train_owners), size=len(unseen)), begins + within)
    owners[by_class] = owners_by_class[source]
    return owners


def raise_to_minimum(
    owners: Indices, num_clients: int, minimum: int, rng: np.random.Generator
) -> Indices:
    """Owners after the largest clients have given to those below the minimum.

    Clients above a common level give what exceeds it; the level is the highest that frees enough.

    Args:
        owners: Client of every example, ``[N]``.
        num_clients: Number of clients ``C``; ``minimum * C <= N``.
        minimum: Examples every client must have.
        rng: Chooses which of a client's examples go.
    """
    sizes = np.bincount(owners, minlength=num_clients)
    lacking = np.maximum(minimum - sizes, 0)
    missing = int(lacking.sum())
    if missing == 0:
        return owners
    level, above = minimum, int(sizes.max())
    while level < above:
        middle = (level + above + 1) // 2
        if np.maximum(sizes - middle, 0).sum() >= missing:
            level = middle
        else:
            above = middle - 1
    order = np.lexsort((rng.permutation(len(owners)), owners))
    ranks = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owners[order]]
    spare, height = order[ranks >= level], ranks[ranks >= level]
    given = spare[np.argsort(-height, kind="stable")[:missing]]
    result = owners.copy()
    result[given] = np.repeat(np.arange(num_clients), lacking)
    return result
