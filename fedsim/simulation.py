"""One run: the parts of a configuration put together and driven round by round."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.arrays import Records, to_record
from fedsim.checkpoint import Checkpoints
from fedsim.client import Client, Setting, initial_model
from fedsim.clock import Clock, Tick
from fedsim.course import tested
from fedsim.evaluation import Evaluation
from fedsim.gate import Gate
from fedsim.judging import accuracy_of
from fedsim.loggers import Logger
from fedsim.loop import Loop, RoundLog
from fedsim.results import Results, write_json
from fedsim.roster import Roster
from fedsim.scenario import Scenario
from fedsim.state import ClientState
from fedsim.strategy import Strategy
from fedsim.tables import Row
from fedsim.wire import Download, Upload

Watcher = Callable[[RoundLog, float], None]  # gets each round's log and its accuracy
_PACKAGES = ("fedsim-lab", "flwr", "torch", "torchvision", "torch-geometric", "avalanche-lib")
_TOOLS = ("hydra-core", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Everything a run consists of.

    Attributes:
        setting: Scenario, clock, model, seed, device.
        client: Client side of the method; also evaluates at the server.
        strategy: Server side of the method.
        server_evaluation: Whether the server tests the global model on all test data.
        loggers: Where numbers go besides the run directory.
        timeout: Seconds that a cohort may take, or None.
        gate: What an update must satisfy.
    """

    setting: Setting
    client: Client
    strategy: FlowerStrategy
    server_evaluation: bool = True
    loggers: Sequence[Logger] = ()
    timeout: float | None = None
    gate: Gate = field(default_factory=Gate)

    @property
    def personal(self) -> bool:
        """Whether each client's own model is what the method is judged by."""
        if self.setting.evaluation.in_training:
            return True
        strategy = self.strategy
        own = isinstance(strategy, Strategy) and strategy.personal
        return own or bool(getattr(self.client, "personal", False))

    def initial_arrays(self) -> ArrayRecord:
        """The untrained model's tensors, those that travel."""
        params, running = dict(initial_model(self.setting).state_dict()), self.setting.running
        return to_record(params if running is None else running.without(params))

    def evaluate(self, tick: Tick, records: Records) -> Upload | None:
        """Test what the server holds on the test data of all clients together."""
        if self.personal and tick.round > 0:
            return None  # nobody uses the global model of a personalised method
        down = Download(client_id=None, tick=tick, records=records)
        return tested(self.client, down, ClientState())

    def run(
        self,
        grid: Grid,
        roster: Roster,
        results: Results,
        *,
        started: float,
        watchers: Sequence[Watcher] = (),
        checkpoints: Checkpoints | None = None,
    ) -> Row:
        """Drive the run to its end and return the summary.

        Args:
            grid: Where the clients are.
            roster: Which node is which client.
            results: Where the measurements go.
            started: ``time.perf_counter()`` at the start of the set-up.
            watchers: Called after every round.
            checkpoints: Where the run begins, if it was begun before, and what keeps it.
        """
        loop = Loop(
            strategy=self.strategy,
            grid=grid,
            roster=roster,
            clock=self.setting.clock,
            seed=self.setting.seed,
            evaluator=self.evaluate if self.server_evaluation else None,
            timeout=self.timeout,
            evaluation=self.setting.evaluation,
            gate=self.gate,
            faults=self.setting.faults,
        )
        arrays = self.initial_arrays()
        earlier = None if checkpoints is None else checkpoints.attach(grid, self.strategy)
        first_round, wall_s, final = 1, 0.0, arrays
        if earlier is not None:
            first_round, wall_s, final = earlier.round + 1, earlier.wall_s, earlier.arrays
        setup_s = time.perf_counter() - started
        mark = time.perf_counter()
        begun = mark - wall_s
        for log, final in loop.run(final, first_round):  # noqa: B020 - begins with these arrays
            with nullcontext() if checkpoints is None else checkpoints.round_end():
                now = time.perf_counter()
                results.record(log, now - mark)
                self._notify(log, now - mark, watchers)
                if checkpoints is not None and not log.is_void:
                    checkpoints.note(log.tick.round, final, results, now - begun)
                mark = time.perf_counter()
        wall_s = mark - begun
        summary = results.finish(
            final,
            {
                "num_clients": roster.num_clients,
                "seed": self.setting.seed,
                "setup_s": round(setup_s, 4),
                "wall_s": round(wall_s, 4),
                "seconds_per_round": round(wall_s / self.setting.clock.num_rounds, 6),
            },
            self.setting.evaluation,
        )
        for logger in self.loggers:
            logger.close(summary)
        return summary

    def _notify(self, log: RoundLog, wall_s: float, watchers: Sequence[Watcher]) -> None:
        accuracy = accuracy_of(log, self.personal, self.setting.evaluation)
        for watcher in watchers:
            watcher(log, accuracy)
        values = {
            "train_loss": log.train_loss,
            "test_accuracy": accuracy,
            "num_clients": float(len(log.cohort)),
            "rejected_updates": float(len(log.rejections)),
            "upload_bytes": float(sum(log.upload_bytes.values())),
            "download_bytes": float(sum(log.download_bytes.values())),
            "wall_s": wall_s,
        }
        known = {name: value for name, value in values.items() if value == value}  # no NaN
        for logger in self.loggers:
            logger.log(log.tick.round, known)


def check_clock(clock: Clock, num_experiences: int) -> None:
    """Raise ValueError if the clock is longer or shorter than the scenario's streams."""
    if clock.num_experiences != num_experiences:
        raise ValueError(
            f"the clock has {clock.num_experiences} experiences and the scenario"
            f" {num_experiences}; leave clock.num_experiences as it is"
        )


def check_evaluation(evaluation: Evaluation, scenario: Scenario, strategy: FlowerStrategy) -> None:
    """Raise ValueError if the scenario or the strategy cannot be judged that way."""
    if evaluation.in_training and hasattr(strategy, "train_loss_key"):
        raise ValueError(
            f"{type(strategy).__name__} reads training losses, and evaluation.when=after_training"
            " sends those of the tests; use evaluation.when=after_aggregation"
        )
    if evaluation.validates and not scenario.has_validation:
        raise ValueError(
            "evaluation.selection=best_validation needs validation data, which only graph scenarios"
            " have; use evaluation.selection=last"
        )


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for package in (*_PACKAGES, *_TOOLS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def write_environment(run_dir: Path) -> None:
    """Write ``env.json``: versions, machine, commit and command."""
    content: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": package_versions(),
        "commit": _commit(),
        "command": sys.argv,
    }
    write_json(run_dir / "env.json", content)


def _commit() -> str | None:
    """The commit that fedsim's own source is at, or None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
