"""Flower's own engines, chosen by configuration as the in-process one is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.serverapp import Grid

from fedsim.checks import ConfigError, Node
from fedsim.cohort_plan import CohortSize
from fedsim.contexts import KeepingGrid
from fedsim.engine import Drive, check_device
from fedsim.roster import OrderedGrid, ask_roster
from fedsim.simulation import Simulation
from fedsim.tables import Row

if TYPE_CHECKING:  # imports Ray
    from fedsim.ray_runtime import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerEngine:
    """Flower's simulation engine: clients in processes of Ray's, on one machine or many.

    Attributes:
        device: Where models train.
        num_cpus: CPU cores that a client takes.
        num_gpus: Part of a GPU that a client takes.
        address: Of a running Ray cluster; None starts Ray on this machine.
        timeout: Seconds that a client may take for a message, or None.
        raise_errors: Whether an exception in a client stops the run.
        cohort: Clients that a process trains at once: ``off``, or ``auto``, which comes to the same
            here.
    """

    device: str = "cpu"
    num_cpus: float = 1
    num_gpus: float = 0
    address: str | None = None
    timeout: float | None = 3600
    raise_errors: bool = True
    cohort: CohortSize = "off"

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise ValueError("engine=flower needs Ray; install it with: pip install -e '.[ray]'")
        check_device(self.device)
        _check(self.timeout, self.cohort)
        if self.num_cpus <= 0 or self.num_gpus < 0:
            raise ValueError(
                "engine.num_cpus must be above 0 and engine.num_gpus at least 0, got"
                f" {self.num_cpus} and {self.num_gpus}"
            )
        if torch.device(self.device).type == "cuda" and self.num_gpus == 0:
            raise ValueError(
                "engine.device=cuda needs engine.num_gpus above 0: Ray hides the GPUs from clients"
                " that take none"
            )

    def run(self, simulation: Simulation, node: Node, run_dir: Path, drive: Drive) -> Row:
        """See :class:`fedsim.engine.Engine`."""
        from fedsim.ray_runtime import Backend, connect, runtime  # imports Ray

        del run_dir
        connect(self.address, num_cpus=self.num_cpus, num_gpus=self.num_gpus)
        backend = Backend(num_cpus=self.num_cpus, num_gpus=self.num_gpus, timeout=self.timeout)
        count = simulation.setting.scenario.num_clients
        with runtime(backend, node, count, trace=self.raise_errors) as started:
            grid, roster, contexts, health = started
            ordered = KeepingGrid(
                contexts,
                grid,
                roster,
                timeout=None if self.timeout is None else self._patience(backend),
                raise_errors=self.raise_errors,
                check=health.check,
            )
            return drive(ordered, roster)

    def _patience(self, backend: "Backend") -> Callable[[int], float]:
        """Seconds that so many messages take at most, if none is lost on the way."""
        from fedsim.ray_runtime import START_S  # imports Ray

        limit = self.timeout or 0.0
        return lambda count: START_S + limit * (1 + math.ceil(count / max(backend.num_workers, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLinkEngine:
    """The nodes of the SuperLink that started the app; only ``flwr run`` can use it.

    Attributes:
        device: Where models train.
        wait: Seconds for the nodes to connect, and again to say which client each of them is.
        timeout: Seconds that the clients of a round may take, or None.
        raise_errors: Whether an exception in a client stops the run.
        cohort: Clients that a process trains at once: ``off``, or ``auto``, which comes to the same
            here.
        grid: Where the nodes are; None outside the app.
    """

    device: str = "cpu"
    wait: float = 300
    timeout: float | None = 3600
    raise_errors: bool = False
    cohort: CohortSize = "off"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.grid is None:
            raise ValueError(
                "engine=superlink is for apps that Flower starts: use flwr run (see"
                " docs/deployment.md), or engine=flower"
            )
        check_device(self.device)
        _check(self.timeout, self.cohort)

    @classmethod
    def of(cls, node: Node, grid: Grid) -> "SuperLinkEngine":
        """The engine of a configuration, for the nodes of a grid.

        Raises:
            ConfigError: If the configuration chooses another engine.
        """
        options = dict(node["engine"])
        chosen = options.pop("_target_")
        if chosen != f"{cls.__module__}.{cls.__qualname__}":
            raise ConfigError("Flower has started this app and runs it: leave engine=... out")
        try:
            return cls(grid=grid, **options)
        except ValueError as error:
            raise ConfigError(f"engine: {error}") from error

    def run(self, simulation: Simulation, node: Node, run_dir: Path, drive: Drive) -> Row:
        """See :class:`fedsim.engine.Engine`."""
        del node, run_dir
        assert self.grid is not None  # checked above
        roster = ask_roster(self.grid, simulation.setting.scenario.num_clients, wait=self.wait)
        limit = self.timeout
        ordered = OrderedGrid(
            self.grid,
            roster,
            timeout=None if limit is None else lambda _: limit,
            raise_errors=self.raise_errors,
        )
        return drive(ordered, roster)


def _check(timeout: float | None, cohort: CohortSize) -> None:
    """Raise ValueError for options that mean nothing."""
    if timeout is not None and timeout <= 0:
        raise ValueError(f"engine.timeout must be above 0, or null for no limit; got {timeout}")
    if cohort not in ("auto", "off", False):  # False is how YAML reads a bare `off`
        raise ValueError(
            f"engine.cohort={cohort} needs engine=local: here every client is trained by itself"
        )
