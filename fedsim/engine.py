"""How the in-process engine is set up."""

import ctypes
import gc
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.apps import client_app_of
from fedsim.checks import Node
from fedsim.cohort_plan import CohortSize
from fedsim.grid import LocalGrid
from fedsim.roster import Roster
from fedsim.seeding import derive
from fedsim.simulation import Simulation
from fedsim.state import DiskStore, MemoryStore, Store
from fedsim.tables import Row

_LOG = logging.getLogger(__name__)

Drive = Callable[[Grid, Roster], Row]  # the whole run, given where the clients are

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for mallopt
_OBJECTS = 10_000  # that are new since Python last looked for cycles
_KEPT_BYTES = 32 << 20  # the largest threshold that glibc takes


def settle_process() -> None:
    """Spare a long run what the process would do again and again for nothing.

    What Python has made by now lives to the end: a full collection need not walk it (0.2 to 0.6 s
    each time). A round makes thousands of objects, and nearly all go with their last reference:
    looking for cycles after every 700 takes a tenth of a short round. Memory that a round frees is
    needed by the next: glibc, where it is in use, keeps it instead of giving it back to the system
    and taking every page anew.
    """
    gc.collect()
    gc.freeze()
    young, *older = gc.get_threshold()
    if 0 < young < _OBJECTS:  # 0 is for never
        gc.set_threshold(_OBJECTS, *older)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)


def check_device(device: str) -> None:
    """Raise ValueError if torch cannot train on the device."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, but torch finds no CUDA device; use cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("engine.device=mps, but torch finds no Apple GPU; use cpu")


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Printing(logging.Handler):
    """Prints messages above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        print(record.getMessage())


def announce() -> None:
    """Print what the engine decides as it goes: how many clients at once, and why no more."""
    for module in ("engine", "execution", "cohort_plan"):
        log = logging.getLogger(f"fedsim.{module}")
        log.setLevel(logging.INFO)
        if not log.handlers:
            log.addHandler(_Printing())


class Engine(Protocol):
    """Where the clients of a run are."""

    def run(self, simulation: Simulation, node: Node, run_dir: Path, drive: Drive) -> Row:
        """Bring the clients up, call ``drive`` once and return what it returns.

        Args:
            simulation: What runs.
            node: Its resolved configuration, for engines whose clients are built elsewhere.
            run_dir: Where its results go.
            drive: Drives the rounds.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """All clients on this machine: in this process, or in worker processes.

    Attributes:
        device: Where models train.
        raise_errors: Whether an exception in a client stops the run.
        shuffle: Run the clients of a round in random order; results must not change.
        keep_states: Client states held in memory, the others on disk; None keeps all in memory.
        cohort: Clients that are trained at once: ``auto`` where it pays, a number, or ``off``.
        workers: Processes that clients run in, or ``auto`` for one a core. With one, clients run in
            this process, unless there is a timeout.
        timeout: Seconds that a client may take for one message, or None.
    """

    device: str = "cpu"
    raise_errors: bool = True
    shuffle: bool = False
    keep_states: int | None = None
    cohort: CohortSize = "off"
    workers: int | Literal["auto"] = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.cohort is False:  # how YAML reads a bare `off`
            object.__setattr__(self, "cohort", "off")
        size = self.cohort
        if isinstance(size, bool) or not (size in ("auto", "off") or isinstance(size, int)):
            raise ValueError(
                f"engine.cohort must be auto, off or a number of clients, got {size!r}"
            )
        if isinstance(size, int) and size < 2:
            raise ValueError(f"engine.cohort must be at least 2, or off; got {size}")
        if self.keep_states is not None and self.keep_states < 1:
            raise ValueError(
                f"engine.keep_states must be at least 1, or null for all; got {self.keep_states}"
            )
        self._check_workers(on_cpu=torch.device(self.device).type == "cpu")

    def _check_workers(self, *, on_cpu: bool) -> None:
        count = self.workers
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(
                f"engine.workers must be a number of at least 1, or auto; got {count!r}"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"engine.timeout must be positive or null, got {self.timeout}")
        apart = self.timeout is not None or (count != "auto" and count > 1)
        if apart and not on_cpu:
            raise ValueError(
                f"engine.workers={count} engine.timeout={self.timeout}: worker processes cannot"
                f" share engine.device={self.device}; use engine.workers=1 engine.timeout=null, and"
                " engine.cohort=auto to train clients at once"
            )

    def plan(self, num_clients: int) -> str:
        """Where clients train and how many at a time, in a line."""
        where = torch.device(self.device)
        name = "CPU"
        if where.type == "cuda":
            properties = torch.cuda.get_device_properties(where)
            name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        count = self.num_workers(num_clients)
        apart = count > 1 or self.timeout is not None
        processes = f"{count} worker processes" if apart else "in this process"
        together = "one by one" if self.cohort == "off" else f"blocks ({self.cohort})"
        return f"{num_clients} clients on {self.device} ({name}), {processes}, {together}"

    def num_workers(self, num_clients: int) -> int:
        """Processes for so many clients."""
        if self.workers != "auto":
            return self.workers
        if torch.device(self.device).type != "cpu" or not hasattr(os, "fork"):
            return 1
        return min(num_cores(), num_clients)

    def run(self, simulation: Simulation, node: Node, run_dir: Path, drive: Drive) -> Row:
        """See :class:`Engine`."""
        app = client_app_of(lambda _: simulation.client)
        count = simulation.setting.scenario.num_clients
        if node["progress"]:
            announce()
            _LOG.info(self.plan(count))
        with self.grid(app, num_clients=count, seed=node["seed"], run_dir=run_dir) as grid:
            return drive(grid, grid.roster)

    def grid(self, app: ClientApp, *, num_clients: int, seed: int, run_dir: Path) -> LocalGrid:
        """A grid with this set-up."""
        store: Store = MemoryStore()
        if self.keep_states is not None:
            store = DiskStore(folder=run_dir / "clients", keep=self.keep_states)
        settle_process()
        rng = random.Random(derive(seed, "execution order"))

        def shuffled(messages: list[Message]) -> list[Message]:
            return rng.sample(messages, len(messages))

        return LocalGrid(
            app,
            num_clients,
            store=store,
            raise_errors=self.raise_errors,
            order=shuffled if self.shuffle else None,
            cohort=self.cohort,
            workers=self.num_workers(num_clients),
            timeout=self.timeout,
        )
