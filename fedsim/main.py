"""The `fedsim` command."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedsim.checks import CONF, ConfigError, Node, VoidRoundError
from fedsim.config import add_resolvers, explain, forget, resolve
from fedsim.interruption import Interruption, exit_code, unbroken
from fedsim.resumption import (
    RunStoppedError,
    asked_for,
    claimed,
    full_disk,
    is_finished,
    no_room,
    prepare,
    way_on,
)
from fedsim.sweep import Job

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedsim.checkpoint import Checkpoints
    from fedsim.engine import Engine
    from fedsim.results import Results
    from fedsim.roster import Roster
    from fedsim.tables import Row

UNUSABLE = (NotADirectoryError, PermissionError, IsADirectoryError, FileExistsError)


def main() -> None:
    """Compose the configuration from the command line and run it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach the lines below unprinted
    sys.path.append(str(Path.cwd()))  # so that `_target_` may name a module of the user's
    add_resolvers()
    with Interruption():
        try:
            _run_or_resume()
        except (HydraException, OmegaConfBaseException) as error:
            sys.exit(f"fedsim: {explain(error, sys.argv[1:])}")
        except (ConfigError, RunStoppedError, VoidRoundError) as error:
            sys.exit(f"fedsim: {error}")
        except YAMLError as error:
            sys.exit(f"fedsim: malformed YAML: {' '.join(str(error).split())}")
        except UNUSABLE as error:
            sys.exit(f"fedsim: {error.strerror}: {error.filename or 'the run directory'}")
        except OSError as error:
            if (cause := full_disk(error)) is None:
                raise
            sys.exit(f"fedsim: {no_room(cause, 'nothing had been run')}")
        except KeyboardInterrupt as error:
            notes = getattr(error, "__notes__", None) or ["nothing had been run"]
            print(f"\nfedsim: interrupted; {notes[0]}", file=sys.stderr)
            sys.exit(exit_code(error))


def _run_or_resume() -> None:
    """Go on with a run if ``resume=`` asks for it; Hydra would begin a run directory of its own."""
    asked = asked_for(sys.argv[1:])
    if asked is None:
        _run()
    elif not go_on(*asked):
        print(f"fedsim: {asked[0]} is finished; nothing is left to do", file=sys.stderr)


def go_on(run_dir: Path, words: Sequence[str]) -> bool:
    """Go on with an interrupted run; False if it is finished, and nothing is done.

    Args:
        run_dir: The run directory.
        words: Overrides that results do not depend on.
    """
    started = time.perf_counter()
    node = prepare(run_dir, words)
    if is_finished(run_dir):
        return False
    simulate(node, run_dir, started=started, resume=True)
    return True


@hydra.main(version_base=None, config_path=str(CONF), config_name="config")
def _run(config: DictConfig) -> float | None:
    """Run a job; what it returns is the objective of a sweeper such as Optuna's."""
    started = time.perf_counter()
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        job = Job(
            sweep_dir=Path(hydra_config.sweep.dir),
            run_dir=run_dir,
            number=int(hydra_config.job.num),
            shown=config.progress,
        )
        summary = job.run(
            lambda: resolve(config),
            lambda node, resume: simulate(node, run_dir, started=started, resume=resume),
        )
        return None if summary is None else _objective(summary, config.objective)
    try:
        simulate(resolve(config), run_dir, started=started)
    except (ConfigError, RunStoppedError, VoidRoundError) as error:
        forget(run_dir)
        sys.exit(f"fedsim: {error}")
    except KeyboardInterrupt:
        forget(run_dir)
        raise
    return None


def _objective(summary: "Row", name: str) -> float | None:
    """The number of the summary that the configuration names."""
    if name not in summary:
        raise ConfigError(f"objective={name} is no entry of summary.json: {', '.join(summary)}")
    value: float | None = summary[name]
    return value


def simulate(
    node: Node,
    run_dir: Path,
    *,
    started: float,
    engine: "Engine | None" = None,
    resume: bool = False,
) -> "Row":
    """Run a resolved configuration and return the summary.

    Args:
        node: The configuration.
        run_dir: Where the results go.
        started: ``time.perf_counter()`` at the start.
        engine: Where the clients are, if Flower has started them already.
        resume: Whether to go on from the newest checkpoint in the run directory.

    Raises:
        ConfigError: If the configuration cannot work, or there is no such checkpoint.
        RunStoppedError: If the disk is full.
    """
    with unbroken():
        import logging

        from fedsim.build import build, make, save_config
        from fedsim.checkpoint import Checkpoints
        from fedsim.checkpoint_origin import find
        from fedsim.cut import describe
        from fedsim.eager import keep_compiler_out
        from fedsim.progress import ProgressBar
        from fedsim.results import Results, RunExistsError, write_json
        from fedsim.simulation import package_versions, write_environment

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its strategies narrate every round
    keep_compiler_out()
    engine = engine or make(node, "engine")
    schedule = make(node, "checkpoint")
    simulation = build(node)
    setting = simulation.setting
    with Interruption() as interruption, claimed(run_dir):
        start = find(run_dir, node, package_versions()) if resume else None
        try:
            results = Results(
                run_dir,
                personal=simulation.personal,
                overwrite=node["overwrite"],
                resumed=None if start is None else start["results"],
            )
        except RunExistsError as error:
            raise ConfigError(str(error)) from error
        checkpoints = Checkpoints(
            run_dir,
            schedule,
            node=node,
            versions=package_versions(),
            interruption=interruption,
            start=start,
        )
        bar = ProgressBar(setting.clock, shown=node["progress"])

        def drive(grid: "Grid", roster: "Roster") -> "Row":
            return simulation.run(
                grid,
                roster,
                results,
                started=started,
                watchers=[bar.update],
                checkpoints=checkpoints,
            )

        with _kept(run_dir, results, checkpoints):
            if start is None:
                save_config(node, run_dir)
                write_environment(run_dir)
                write_json(run_dir / "scenario.json", describe(setting.scenario, setting.clock))
            for logger in simulation.loggers:
                logger.start(run_dir, node)
            with bar:
                summary: Row = engine.run(simulation, node, run_dir, drive)
            checkpoints.finish()
    if node["progress"]:
        _show(summary, results, run_dir)
    return summary


@contextmanager
def _kept(run_dir: Path, results: "Results", checkpoints: "Checkpoints") -> Iterator[None]:
    """See to it that a run that ends early can go on from its last round."""
    try:
        yield
    except BaseException as error:
        cause = full_disk(error)
        try:
            round_ = checkpoints.saved if cause is not None else checkpoints.save()
        except OSError as second:
            cause, round_ = full_disk(second) or cause, checkpoints.saved
        results.abandon()
        words = way_on(run_dir, round_)
        if cause is not None:
            raise no_room(cause, words) from error
        error.add_note(words)
        raise


def _show(summary: "Row", results: "Results", run_dir: Path) -> None:
    """Print the tables that end a run."""
    from rich.console import Console

    from fedsim.judging import judged
    from fedsim.metrics import accuracy_matrix
    from fedsim.progress import matrix_table, rejections_table, summary_table

    console = Console()
    rows = judged(results.rows(), results.personal)
    if rows and any(row["experience"] > 0 for row in rows):
        title = "Accuracy on each experience's test data"
        console.print(matrix_table(accuracy_matrix(rows), title))
    console.print(summary_table(summary))
    if refused := results.rejections():
        console.print(rejections_table(refused))
    console.print(f"Everything is in {run_dir}", soft_wrap=True)


if __name__ == "__main__":
    main()
