"""Federated continual time: which experience a round belongs to, at the server and at a client."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.seeding import numpy_generator


@dataclass(frozen=True, slots=True)
class Tick:
    """One point in federated continual time.

    Attributes:
        round: Communication round, counted from 1 as Flower does.
        experience: Position in the stream, counted from 0 as Avalanche does. ``-1`` means that
            this client has not joined yet.
        step: Round inside the experience, counted from 0.
        is_first: First round of the experience.
        is_last: Last round of the experience.
    """

    round: int
    experience: int
    step: int
    is_first: bool
    is_last: bool


class Clock:
    """Every client enters an experience in the same round.

    Args:
        num_experiences: Length of the stream, ``E``.
        rounds_per_experience: Rounds spent in each experience; one number or one per experience.
        evaluate_every: Evaluate every this many rounds, besides the last round of every
            experience; ``0`` evaluates at the end of experiences only.

    Raises:
        ValueError: If a count is not positive or the lengths do not match.
    """

    def __init__(
        self,
        *,
        num_experiences: int,
        rounds_per_experience: int | Sequence[int],
        evaluate_every: int = 0,
    ) -> None:
        if num_experiences < 1:
            raise ValueError(f"num_experiences must be at least 1, got {num_experiences}")
        if isinstance(rounds_per_experience, int):
            rounds = [rounds_per_experience] * num_experiences
        else:
            rounds = [int(r) for r in rounds_per_experience]
        if len(rounds) != num_experiences:
            raise ValueError(
                f"rounds_per_experience has {len(rounds)} entries for {num_experiences} experiences"
            )
        if min(rounds) < 1:
            raise ValueError(f"rounds_per_experience must be at least 1, got {rounds}")
        if evaluate_every < 0:
            raise ValueError(f"evaluate_every must be 0 or more, got {evaluate_every}")
        self.num_experiences = num_experiences
        self.evaluate_every = evaluate_every
        self._ends = np.cumsum(rounds)  # last round of each experience, [E]
        self.num_rounds = int(self._ends[-1])
        self._last: tuple[tuple[int, int, int], Tick] | None = None  # most ask for the same one

    def at(self, round_: int, client_id: int | None = None) -> Tick:
        """The tick of a client in a round; ``client_id=None`` asks for the server's own time."""
        del client_id  # everybody has the same time here
        return self._tick(round_, shift=0)

    def evaluates(self, round_: int) -> bool:
        """Whether the server evaluates after this round."""
        if self.at(round_).is_last:
            return True
        return self.evaluate_every > 0 and round_ % self.evaluate_every == 0

    def joins(self, client_id: int) -> int:
        """The first round in which this client can take part."""
        del client_id
        return 1

    def _tick(self, round_: int, shift: int, joins: int = 1) -> Tick:
        """The tick of a participant whose boundaries lie ``shift`` rounds after the server's."""
        asked = round_, shift, joins
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._worked_out(round_, shift, joins)
        return self._last[1]

    def _worked_out(self, round_: int, shift: int, joins: int) -> Tick:
        if not 1 <= round_ <= self.num_rounds:
            raise ValueError(f"round must lie in [1, {self.num_rounds}], got {round_}")
        if round_ < joins:
            return Tick(round_, -1, 0, is_first=False, is_last=False)
        local = max(round_ - shift, 1)
        experience = int(np.searchsorted(self._ends, local - 1, side="right"))
        begin = int(self._ends[experience - 1]) + 1 + shift if experience else joins
        end = int(self._ends[experience]) + shift
        end = self.num_rounds if experience == self.num_experiences - 1 else end
        end = min(end, self.num_rounds)
        begin = max(begin, joins)
        return Tick(round_, experience, round_ - begin, round_ == begin, round_ == end)


class MilestoneClock(Clock):
    """Evaluates after some experiences only: streams of hundreds would evaluate all the time.

    Args:
        milestones: Evaluate at the end of the experience that is the n-th of the stream, for these
            numbers from 1 on; those beyond the stream are left out. The last one always counts.
        num_experiences: See :class:`Clock`.
        rounds_per_experience: See :class:`Clock`.
        evaluate_every: See :class:`Clock`.
    """

    def __init__(
        self,
        *,
        num_experiences: int,
        rounds_per_experience: int | Sequence[int],
        evaluate_every: int = 0,
        milestones: Sequence[int],
    ) -> None:
        super().__init__(
            num_experiences=num_experiences,
            rounds_per_experience=rounds_per_experience,
            evaluate_every=evaluate_every,
        )
        if min(milestones, default=1) < 1:
            raise ValueError(f"milestones count experiences from 1, got {list(milestones)}")
        self._milestones = {*milestones, num_experiences}

    def evaluates(self, round_: int) -> bool:
        """See :meth:`Clock.evaluates`."""
        tick = self.at(round_)
        if tick.is_last and tick.experience + 1 in self._milestones:
            return True
        return self.evaluate_every > 0 and round_ % self.evaluate_every == 0


class StaggeredClock(Clock):
    """Each client reaches a boundary some rounds after the server: asynchronous task arrival.

    The shift of a client is drawn once, uniformly from ``0..max_shift``, from the seed. The last
    experience is cut short by the shift, since the run ends for everybody in the same round.

    Args:
        max_shift: Largest delay of a client in rounds; ``0`` is :class:`Clock`.
        seed: Seed of the run.
        num_experiences: See :class:`Clock`.
        rounds_per_experience: See :class:`Clock`.
        evaluate_every: See :class:`Clock`.
    """

    def __init__(
        self,
        *,
        num_experiences: int,
        rounds_per_experience: int | Sequence[int],
        evaluate_every: int = 0,
        max_shift: int,
        seed: int,
    ) -> None:
        super().__init__(
            num_experiences=num_experiences,
            rounds_per_experience=rounds_per_experience,
            evaluate_every=evaluate_every,
        )
        shortest = int(np.diff(self._ends, prepend=0).min())
        if not 0 <= max_shift < max(shortest, 1):
            raise ValueError(
                f"max_shift must lie in [0, {shortest - 1}] (shorter than the shortest experience),"
                f" got {max_shift}"
            )
        self._max_shift = max_shift
        self._seed = seed

    def shift(self, client_id: int) -> int:
        """Rounds by which this client's boundaries lie after the server's."""
        rng = numpy_generator(self._seed, "shift", client_id)
        return int(rng.integers(self._max_shift + 1))

    def at(self, round_: int, client_id: int | None = None) -> Tick:
        """See :meth:`Clock.at`."""
        return self._tick(round_, shift=0 if client_id is None else self.shift(client_id))


class LateClock(Clock):
    """A share of the clients joins the federation late; from then on they follow everybody's time.

    A late client's first experience is the one that runs when it joins: the earlier ones are over.

    Args:
        late_fraction: Share of clients that join late, in ``[0, 1]``.
        latest_join: Late clients join in a round drawn uniformly from ``2..latest_join``.
        seed: Seed of the run.
        num_experiences: See :class:`Clock`.
        rounds_per_experience: See :class:`Clock`.
        evaluate_every: See :class:`Clock`.
    """

    def __init__(
        self,
        *,
        num_experiences: int,
        rounds_per_experience: int | Sequence[int],
        evaluate_every: int = 0,
        late_fraction: float,
        latest_join: int,
        seed: int,
    ) -> None:
        super().__init__(
            num_experiences=num_experiences,
            rounds_per_experience=rounds_per_experience,
            evaluate_every=evaluate_every,
        )
        if not 0.0 <= late_fraction <= 1.0:
            raise ValueError(f"late_fraction must lie in [0, 1], got {late_fraction}")
        if not 2 <= latest_join <= self.num_rounds:
            raise ValueError(f"latest_join must lie in [2, {self.num_rounds}], got {latest_join}")
        self._late_fraction = late_fraction
        self._latest_join = latest_join
        self._seed = seed

    def joins(self, client_id: int) -> int:
        """See :meth:`Clock.joins`."""
        rng = numpy_generator(self._seed, "join", client_id)
        if rng.random() >= self._late_fraction:
            return 1
        return int(rng.integers(2, self._latest_join + 1))

    def at(self, round_: int, client_id: int | None = None) -> Tick:
        """See :meth:`Clock.at`."""
        return self._tick(round_, 0, joins=1 if client_id is None else self.joins(client_id))
