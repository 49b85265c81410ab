"""Which clients take part in a round, drawn from (seed, round) only."""

from typing import Protocol

import numpy as np

from fedsim.clock import Clock
from fedsim.seeding import numpy_generator


class Sampler(Protocol):
    """Draws the cohort of a round."""

    def cohort(self, round_: int, num_clients: int, clock: Clock) -> list[int]:
        """Client ids, ascending, without repeats."""
        ...


class Uniform:
    """Every client that has joined is equally likely.

    The cost depends on the cohort, not on the number of registered clients.

    Args:
        seed: Seed of the run.
        fraction: Share of the registered clients, in ``[0, 1]``, at least one client unless it is
            0; ignored when ``count`` is given.
        count: Size of the cohort, or None.
        fixed: Draw one cohort for the whole run (for evaluations that can be compared).
        purpose: Name of the draw, so that training and evaluation draw independently.
    """

    def __init__(
        self,
        *,
        seed: int,
        fraction: float = 1.0,
        count: int | None = None,
        fixed: bool = False,
        purpose: str = "sample",
    ) -> None:
        if count is None and not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self._seed, self._fraction, self._count = seed, fraction, count
        self._fixed, self._purpose = fixed, purpose

    def cohort(self, round_: int, num_clients: int, clock: Clock) -> list[int]:
        """See :class:`Sampler`."""
        if self._count is None and self._fraction == 0.0:
            return []
        wanted = self._count if self._count is not None else round(self._fraction * num_clients)
        wanted = min(max(wanted, 1), num_clients)
        rng = numpy_generator(self._seed, self._purpose, 0 if self._fixed else round_)
        if wanted == num_clients:
            drawn = np.arange(num_clients)
        else:
            drawn = draw_distinct(rng, num_clients, wanted)
        if self._fixed:
            return sorted(drawn.tolist())
        return sorted(c for c in drawn.tolist() if clock.joins(c) <= round_)


def draw_distinct(rng: np.random.Generator, population: int, count: int) -> np.ndarray:
    """``count`` distinct numbers below ``population``, at a cost that depends on ``count`` only."""
    if count * 4 >= population:
        return rng.permutation(population)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        for value in rng.integers(population, size=count - len(seen)).tolist():
            seen.setdefault(value)
    return np.fromiter(seen, dtype=np.int64, count=count)
