"""Checkpoints of a run: what is in them, when they are written, and going on from one.

A checkpoint holds the global arrays, what the strategy remembers, what every client remembers, and
how far the results had come when a round ended. Randomness needs no entry: every draw derives from
seed, purpose, round and client. Rounds that were begun later never happened.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.arrays import num_bytes, to_params
from fedsim.checkpoint_files import (
    FOLDER,
    CheckpointError,
    Entry,
    read_part,
    remove_all_but,
    write_manifest,
    write_part,
)
from fedsim.checkpoint_origin import fingerprint
from fedsim.checks import Node
from fedsim.interruption import Interruption
from fedsim.results import Results
from fedsim.server_memory import FORMS, Snapshot, encoded, memory_of, packages_of, set_memory
from fedsim.state import RoundStore

_FIRST_GUESS_S, _GUESSED_BYTES_PER_S = 0.05, 1e8  # what a checkpoint costs, until one was written
_PART_BYTES = 128 << 20  # client states in one file, and in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When checkpoints are written. One is always written when a run is interrupted.

    Attributes:
        every: Rounds between two; ``auto`` for as often as costs at most ``share`` of the run's
            time; None for no others.
        share: Of the time, in ``(0, 1)``.
        keep: Checkpoints that are kept; 0 for none at all, not even when interrupted.
    """

    every: int | Literal["auto"] | None = "auto"
    share: float = 0.02
    keep: int = 2

    def __post_init__(self) -> None:
        number = isinstance(self.every, int) and not isinstance(self.every, bool)
        if self.every not in ("auto", None) and (not number or int(self.every) < 1):
            raise ValueError(
                f"checkpoint.every must be auto, a number of rounds or null, got {self.every!r}"
            )
        if not 0 < self.share < 1:
            raise ValueError(f"checkpoint.share must be above 0 and below 1, got {self.share}")
        if not isinstance(self.keep, int) or self.keep < 0:
            raise ValueError(f"checkpoint.keep must be at least 0, got {self.keep}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        round: The last one that is over.
        arrays: The global arrays after it.
        wall_s: What the rounds up to it took.
    """

    round: int
    arrays: ArrayRecord
    wall_s: float


class Checkpoints:
    """Takes a run's state after every round and writes it when it is time.

    Args:
        run_dir: The run directory.
        schedule: When to write.
        node: The resolved configuration, to be recognised by.
        versions: Of the packages that results depend on.
        interruption: What stops the run.
        start: The checkpoint to go on from, as :func:`find` gave it.
    """

    def __init__(
        self,
        run_dir: Path,
        schedule: Schedule,
        *,
        node: Node,
        versions: Mapping[str, str | None],
        interruption: Interruption,
        start: Entry | None = None,
    ) -> None:
        self._run_dir, self._schedule = run_dir, schedule
        self._origin = {"config": fingerprint(node), "versions": dict(versions)}
        self._interruption = interruption
        self._start = start
        self._strategy: FlowerStrategy | None = None
        self._store: RoundStore | None = None
        self._kept: list[Entry] = [] if start is None else [start]
        self._parts: list[Entry] = [] if start is None else list(start["clients"])
        self._possible = schedule.keep > 0
        self._latest: Snapshot | None = None
        self._results: Results | None = None
        self._saved = 0 if start is None else int(start["round"])
        self._begun, self._spent, self._cost = time.perf_counter(), 0.0, 0.0
        if start is None:
            remove_all_but(run_dir, [])

    def attach(self, grid: Grid, strategy: FlowerStrategy) -> Resumed | None:
        """Watch what clients and strategy remember; gives them what they did, if this goes on.

        Raises:
            CheckpointError: If the run cannot go on here.
        """
        self._begun = time.perf_counter()
        if self._schedule.keep == 0 and self._start is None:
            return None
        store = getattr(grid, "store", None)
        if store is None:
            reason = "this engine does not show what clients remember"
            if self._start is not None:
                raise CheckpointError(f"{self._run_dir} cannot be resumed: {reason}")
            _warn(reason)
            return None
        rounds = RoundStore(store)
        grid.store = rounds  # type: ignore[attr-defined]
        self._store, self._strategy = rounds, strategy
        try:
            encoded(memory_of(strategy), packages_of(strategy), type(strategy).__name__)
        except TypeError as error:
            self._give_up(error)
        return None if self._start is None else self._restore(self._start, rounds, strategy)

    @property
    def saved(self) -> int | None:
        """The round after which the newest checkpoint was written, or None without one."""
        return self._saved or None

    @contextmanager
    def round_end(self) -> Iterator[None]:
        """What happens when a round is over, all of it or nothing."""
        with self._interruption.deferred():
            yield

    def note(self, round_: int, arrays: ArrayRecord, results: Results, wall_s: float) -> None:
        """A round is over: keep its end in mind, and write it down if it is time.

        Args:
            round_: Which.
            arrays: The global arrays after it.
            results: What was measured.
            wall_s: What the rounds up to it took.
        """
        if self._store is None or self._strategy is None:
            return
        began = time.perf_counter()
        self._store.commit()
        if not self._possible:
            return
        self._results = results
        try:
            self._latest = Snapshot(round_, arrays, self._strategy, results.memory(), wall_s)
            if round_ > 0 and self._is_due(round_):
                self.save()
        except TypeError as error:
            self._give_up(error)
        self._spent += time.perf_counter() - began

    def save(self) -> int | None:
        """Write the end of the last round, unless it is written; the round, or None without one.

        Raises:
            OSError: If the disk is full, for example; earlier checkpoints stay.
        """
        latest, store, results = self._latest, self._store, self._results
        if latest is None or store is None or results is None or latest.round <= self._saved:
            return self.saved
        began = time.perf_counter()
        results.sync()
        folder = self._run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        name = f"{latest.round:06d}"
        server = write_part(folder / f"server-{name}.safetensors", latest.server())
        parts = self._write_states(folder, name, store)
        content = {
            **self._origin,
            "server": server,
            "clients": parts,
            "results": latest.results,
            "wall_s": latest.wall_s,
        }
        write_manifest(self._run_dir, latest.round, content)
        store.changed = set()
        self._parts, self._saved = parts, latest.round
        self._kept = [*self._kept, {"round": latest.round, **content}]
        self._kept = self._kept[-max(self._schedule.keep, 1) :]
        remove_all_but(self._run_dir, self._kept)
        self._cost = time.perf_counter() - began
        return latest.round

    def finish(self) -> None:
        """The run is over: its checkpoints have no further use."""
        remove_all_but(self._run_dir, [])

    def _is_due(self, round_: int) -> bool:
        every = self._schedule.every
        if every != "auto":
            return every is not None and round_ % every == 0
        left = self._schedule.share * (time.perf_counter() - self._begun) - self._spent
        return left >= (self._cost or _FIRST_GUESS_S) and left >= (self._cost or self._guess())

    def _guess(self) -> float:
        """Seconds that the first checkpoint may cost."""
        if self._store is None:
            return _FIRST_GUESS_S
        sizes = (_num_bytes(self._store.kept(client)) for client in self._store.changed)
        return _FIRST_GUESS_S + sum(sizes) / _GUESSED_BYTES_PER_S

    def _give_up(self, error: TypeError) -> None:
        """What the method remembers has no written form."""
        _warn(str(error))
        self._possible, self._latest = False, None

    def _write_states(self, folder: Path, name: str, store: RoundStore) -> list[Entry]:
        """Write the states that changed; all of them if most of what is written is outdated."""
        written = sum(len(part["ids"]) for part in self._parts)
        alive = store.kept_ids()
        everything = written + len(store.changed) > 2 * max(len(alive), 1)
        changed = alive if everything else sorted(store.changed)
        parts: list[Entry] = []
        for number, states in enumerate(_batches(changed, store)):
            params = encoded(states, frozenset(), "clients")
            entry = write_part(folder / f"clients-{name}-{number:03d}.safetensors", params)
            parts.append({**entry, "ids": sorted(states)})
        old = [] if everything else self._parts
        return [p for p in old if not store.changed.issuperset(p["ids"])] + parts

    def _restore(self, start: Entry, store: RoundStore, strategy: FlowerStrategy) -> Resumed:
        folder = self._run_dir / FOLDER
        path = folder / start["server"]["file"]
        packages = packages_of(strategy)
        server = read_part(path, FORMS, packages)
        try:
            last = {client: i for i, part in enumerate(start["clients"]) for client in part["ids"]}
            set_memory(strategy, server["strategy"])
            arrays, round_, wall_s = server["arrays"], int(start["round"]), float(start["wall_s"])
            to_params(arrays)
            for i, part in enumerate(start["clients"]):
                path = folder / part["file"]
                for client, state in read_part(path, FORMS, frozenset()).items():
                    if last[client] == i:
                        store.put(int(client), _records(state))
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is no checkpoint of this method: {error}") from error
        store.commit()
        store.changed = set()
        return Resumed(round=round_, arrays=arrays, wall_s=wall_s)


def _batches(ids: list[int], store: RoundStore) -> Iterator[dict[int, RecordDict]]:
    """States in parts of bounded size."""
    batch: dict[int, RecordDict] = {}
    size = 0
    for client in ids:
        batch[client] = state = store.kept(client)
        size += _num_bytes(state)
        if size >= _PART_BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _num_bytes(state: RecordDict) -> int:
    return sum(num_bytes(to_params(r)) for r in state.values() if isinstance(r, ArrayRecord))


def _records(state: Any) -> RecordDict:
    if not isinstance(state, RecordDict):
        raise TypeError("a client's state is something else than records")
    return state


def _warn(reason: str) -> None:
    print(f"fedsim: this run cannot be resumed if it is interrupted: {reason}", file=sys.stderr)
