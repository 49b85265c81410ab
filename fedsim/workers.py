"""Processes that share the clients of a round.

A pool hands out works and gives their outcomes back in order. Workers are forked, so that they
share the data set's memory with the run's own process; see :mod:`fedsim.nursery`. Forking is safe
here because torch computes on one thread and has started none; with a GPU it is not, and
:class:`fedsim.engine.LocalEngine` says so. Threads are no choice: torch's generator, which dropout
reads, is one for all of them, so that results would depend on who is faster.

Nothing outlives the run: workers end with the nursery, and the nursery with the socket to the run,
however that ends.
"""

import os
import selectors
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flwr.app import ArrayRecord

from fedsim.arrays import decoded
from fedsim.nursery import FAILURE, SHARED, WORK, Do, Nursery
from fedsim.parcels import pack, receive, send, unpack

W = TypeVar("W")

_AHEAD = 2  # works a worker holds at once: one that runs and one that waits, so that none idles
_DEATHS = 3  # of workers that run the same client, after which it is not tried again


@dataclass(frozen=True, slots=True)
class Lost:
    """A work without an outcome.

    Attributes:
        late: Whether it took too long; else its worker died, time and again.
    """

    late: bool


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a work raised."""

    error: Exception


@dataclass(slots=True, eq=False)
class _Task(Generic[W]):
    """One work on its way through the pool.

    Attributes:
        work: What is to be done.
        run: Which run it belongs to.
        outcome: What came of it, or None.
        parts: What it was cut into after it failed as a whole, in order.
        deaths: Workers that died of it.
    """

    work: W
    run: "_Run[W]"
    outcome: Any = None
    parts: "list[_Task[W]]" = field(default_factory=list)
    deaths: int = 0

    @property
    def is_over(self) -> bool:
        """Whether there is an outcome of all of it."""
        return self.outcome is not None or (bool(self.parts) and all(p.is_over for p in self.parts))

    def outcomes(self) -> Iterator[tuple[W, Any]]:
        """Works with their outcomes, in order."""
        if not self.parts:
            yield self.work, self.outcome
        for part in self.parts:
            yield from part.outcomes()


class _Run(Generic[W]):
    """The works of one call of :meth:`WorkerPool.run`.

    Args:
        works: Where they come from.
        shared: Records that several of them refer to, by number.
    """

    def __init__(self, works: Iterable[W], shared: Mapping[int, ArrayRecord]) -> None:
        self._works = iter(works)
        self.has_more = True  # works that have not been begun
        self.known = {id(record): number for number, record in shared.items()}
        self.parcel = pack({n: decoded(r) for n, r in shared.items()}) if shared else None
        self.order: deque[_Task[W]] = deque()  # whose outcomes have not been handed out
        self.again: deque[_Task[W]] = deque()  # that must be done again, or in parts

    def next(self, most: int) -> _Task[W] | None:
        """What is to be done next, if anything may be begun."""
        if self.again:
            return self.again.popleft()
        if len(self.order) >= most:
            return None
        if (work := next(self._works, None)) is None:
            self.has_more = False
            return None
        self.order.append(_Task(work, self))
        return self.order[-1]


@dataclass(slots=True, eq=False)
class _Worker(Generic[W]):
    """A process as its pool sees it.

    Attributes:
        pid: Its number.
        connection: The socket to it.
        tasks: What it has been sent, in the order in which it does them.
        since: When it began with the first of these.
        equipped: The run whose shared records it has.
    """

    pid: int
    connection: socket.socket
    tasks: "deque[_Task[W]]" = field(default_factory=deque)
    since: float = 0.0
    equipped: "_Run[W] | None" = None


class WorkerPool(Generic[W]):
    """Does works in other processes.

    Args:
        do: Does one work, given the shared records too; a worker inherits it with all that it
            refers to.
        count: Number of processes.
        cut: Divides a work that workers die of, or that takes too long, into works of one client.
        size: Number of clients in a work.
        timeout: Seconds that a client may take, or None. A worker that takes longer is replaced.

    Raises:
        ValueError: If the system cannot fork.
    """

    def __init__(
        self,
        do: Do,
        count: int,
        *,
        cut: Callable[[W], list[W]],
        size: Callable[[W], int],
        timeout: float | None = None,
    ) -> None:
        if not hasattr(os, "fork"):
            raise ValueError("engine.workers needs a system that can fork; use engine.workers=1")
        self._cut, self._size, self._timeout = cut, size, timeout
        self._nursery = Nursery(do)
        self._close = weakref.finalize(self, self._nursery.close)
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker[W]] = []
        for _ in range(count):
            self._admit()

    @property
    def pids(self) -> list[int]:
        """The workers' process numbers."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.connection.close()
        self._selector.close()
        self._close()

    def run(self, works: Iterable[W], shared: Mapping[int, ArrayRecord]) -> Iterator[tuple[W, Any]]:
        """Every work, or its parts, with what came of it: a result or :class:`Lost`.

        Works are taken from the iterable as workers become free, a few ahead of the outcomes that
        have been handed out.

        Args:
            works: What is to be done.
            shared: Records that several works refer to; they go to a worker once.

        Raises:
            Exception: What a work raised, when it is its turn.
        """
        run = _Run(works, shared)
        try:
            while run.has_more or run.order:
                self._hand_out(run)
                while run.order and run.order[0].is_over:
                    for work, outcome in run.order.popleft().outcomes():
                        if isinstance(outcome, _Failure):
                            raise outcome.error
                        yield work, outcome
                    self._hand_out(run)
                if run.has_more or run.order:
                    self._wait()
        finally:
            if run.parcel is not None:
                os.close(run.parcel.file)

    def _hand_out(self, run: _Run[W]) -> None:
        """Give every worker something to do, and something to do next."""
        most = 2 * _AHEAD * len(self._workers)  # outcomes that wait for one before them
        for held in range(_AHEAD):
            for worker in self._workers:
                if len(worker.tasks) <= held:
                    if (task := run.next(most)) is None:
                        return
                    self._give(worker, task)

    def _give(self, worker: _Worker[W], task: _Task[W]) -> None:
        run = task.run
        parcel = pack(task.work, run.known)
        try:
            if run.parcel is not None and worker.equipped is not run:
                send(worker.connection, SHARED, run.parcel)
                worker.equipped = run
            send(worker.connection, WORK, parcel)
        except OSError:
            pass  # it has died; `_wait` finds that out, and that this task was its
        finally:
            os.close(parcel.file)
        if not worker.tasks:
            worker.since = time.monotonic()
        worker.tasks.append(task)

    def _wait(self) -> None:
        """Wait until something happens, and deal with it."""
        due = [self._due(worker) for worker in self._workers if worker.tasks]
        patience = None
        if self._timeout is not None and due:
            patience = max(0.0, min(due) - time.monotonic())
        ready = [key.data for key, _ in self._selector.select(patience)]
        for worker in ready:
            try:
                kind, parcel = receive(worker.connection)
            except (EOFError, OSError):
                self._lose(worker, late=False)
                continue
            outcome = unpack(parcel)
            os.close(parcel.file)
            worker.tasks.popleft().outcome = _Failure(outcome) if kind == FAILURE else outcome
            worker.since = time.monotonic()
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.tasks and worker not in ready and now >= self._due(worker):
                self._lose(worker, late=True)

    def _due(self, worker: _Worker[W]) -> float:
        """When the worker must have answered."""
        if self._timeout is None:
            return float("inf")
        return worker.since + self._timeout * self._size(worker.tasks[0].work)

    def _lose(self, worker: _Worker[W], *, late: bool) -> None:
        """Replace a worker; what it had not done is done again."""
        self._selector.unregister(worker.connection)
        worker.connection.close()
        self._workers.remove(worker)
        self._admit(instead_of=worker.pid)
        tasks = list(worker.tasks)
        for task in reversed(tasks[1:]):  # these had not been begun
            task.run.again.appendleft(task)
        if tasks:
            self._retry(tasks[0], late=late)

    def _retry(self, task: _Task[W], *, late: bool) -> None:
        """Do a failed task again, whole or in parts, or give it up."""
        task.deaths += 1
        divisible = self._size(task.work) > 1
        if divisible and (late or task.deaths >= _DEATHS):
            task.parts = [_Task(part, task.run) for part in self._cut(task.work)]
            task.run.again.extendleft(reversed(task.parts))
        elif late or task.deaths >= _DEATHS:
            task.outcome = Lost(late)
        else:
            task.run.again.appendleft(task)

    def _admit(self, instead_of: int = 0) -> None:
        worker: _Worker[W] = _Worker(*self._nursery.born(instead_of))
        self._workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)
