"""The `fedsim` command."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedsim.checks import CONF, ConfigError, Node
from fedsim.config import explain, resolve
from fedsim.sweep import Job

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedsim.engine import Engine
    from fedsim.results import Results
    from fedsim.roster import Roster
    from fedsim.tables import Row

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main() -> None:
    """Compose the configuration from the command line and run it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach the lines below unprinted
    sys.path.append(str(Path.cwd()))  # so that `_target_` may name a module of the user's
    try:
        _run()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"fedsim: {explain(error, sys.argv[1:])}")
    except ConfigError as error:
        sys.exit(f"fedsim: {error}")
    except KeyboardInterrupt:
        print("fedsim: interrupted; the rounds that were finished are on disk", file=sys.stderr)
        sys.exit(INTERRUPTED)


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
            lambda: resolve(config), lambda node: simulate(node, run_dir, started=started)
        )
        return None if summary is None else _objective(summary, config.objective)
    try:
        simulate(resolve(config), run_dir, started=started)
    except ConfigError as error:
        sys.exit(f"fedsim: {error}")
    return None


def _objective(summary: "Row", name: str) -> float | None:
    """The number of the summary that the configuration names."""
    if name not in summary:
        raise ConfigError(f"objective={name} is no entry of summary.json: {', '.join(summary)}")
    value: float | None = summary[name]
    return value


def simulate(node: Node, run_dir: Path, *, started: float) -> "Row":
    """Run a resolved configuration in process and return the summary."""
    import logging

    from fedsim.build import build, make, save_config
    from fedsim.cut import describe
    from fedsim.progress import ProgressBar
    from fedsim.results import Results, RunExistsError, write_json
    from fedsim.simulation import write_environment

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its strategies narrate every round
    engine: Engine = make(node, "engine")
    simulation = build(node)
    setting = simulation.setting
    try:
        results = Results(run_dir, personal=simulation.personal, overwrite=node["overwrite"])
    except RunExistsError as error:
        raise ConfigError(str(error)) from error
    save_config(node, run_dir)
    write_environment(run_dir)
    write_json(run_dir / "scenario.json", describe(setting.scenario, setting.clock))
    for logger in simulation.loggers:
        logger.start(run_dir, node)
    with ProgressBar(simulation.setting.clock, shown=node["progress"]) as bar:

        def drive(grid: "Grid", roster: "Roster") -> "Row":
            return simulation.run(grid, roster, results, started=started, watchers=[bar.update])

        summary = engine.run(simulation, node, run_dir, drive)
    if node["progress"]:
        _show(summary, results, run_dir)
    return summary


def _show(summary: "Row", results: "Results", run_dir: Path) -> None:
    """Print the tables that end a run."""
    from rich.console import Console

    from fedsim.metrics import accuracy_matrix
    from fedsim.progress import matrix_table, summary_table
    from fedsim.results import judged

    console = Console()
    rows = judged(results.rows(), results.personal)
    if rows and any(row["experience"] > 0 for row in rows):
        title = "Accuracy on each experience's test data"
        console.print(matrix_table(accuracy_matrix(rows), title))
    console.print(summary_table(summary))
    console.print(f"Everything is in {run_dir}", soft_wrap=True)


if __name__ == "__main__":
    main()
