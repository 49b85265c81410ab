"""Where the figures of each round go, besides the run directory's own files."""

import csv
import importlib
import json
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol


class Logger(Protocol):
    """Receives the figures of a run while it runs: ``start``, then ``log`` per round, ``close``.

    A resumed run calls ``start`` again on the same directory and goes on from an earlier round.
    """

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """Opens the log.

        Args:
            run_dir: Directory of the run, which exists.
            config: The composed configuration as plain values.
        """
        ...

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """Takes figures of a round; several calls for one round add up.

        Args:
            round_: Communication round, 0 for the untrained model.
            values: Figure by name, e.g. ``{"train/loss": 0.3}``.
        """
        ...

    def close(self, summary: dict[str, Any]) -> None:
        """Ends the log with the figures of the whole run and what else there is to tell."""
        ...


class CsvLogger:
    """One line per round in a CSV file, one column per figure.

    A figure that appears late gets a column of its own, and the earlier lines an empty cell. In a
    resumed run the lines from the first logged round on are replaced. The summary of the run is
    not written: it has its own file.

    Args:
        file_name: Name of the file in the run directory.
    """

    def __init__(self, *, file_name: str = "metrics.csv") -> None:
        self._file_name = file_name
        self._path = Path()
        self._columns: list[str] = []  # empty until something was logged
        self._current: dict[str, Any] = {}  # the last line
        self._current_begin = 0  # where the line of the current round begins, in bytes

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """See :meth:`Logger.start`."""
        del config  # the run directory holds it
        self._path = run_dir / self._file_name
        self._columns, self._current = [], {}

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """See :meth:`Logger.log`."""
        if round_ != self._current.get("round"):
            if not self._current and self._path.exists():  # an interrupted run wrote it
                columns, rows = self._read()
                if kept := [row for row in rows if int(row["round"]) < round_]:
                    self._write(columns, kept)
            self._current = {"round": round_}
            self._current_begin = self._path.stat().st_size if self._columns else 0
        self._current |= values
        new = [name for name in self._current if name not in self._columns]
        if new:
            earlier = self._read()[1] if self._columns else []
            earlier = [row for row in earlier if int(row["round"]) != round_]
            self._write(self._columns + new, earlier)
        with self._path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(self._current_begin)
            file.truncate()
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._current)

    def close(self, summary: dict[str, Any]) -> None:
        """See :meth:`Logger.close`."""
        del summary  # the run directory holds it

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and lines of the file."""
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Writes the file anew, whole or not at all."""
        beside = self._path.with_suffix(".partial")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self._path)
        self._columns = columns
        self._current_begin = self._path.stat().st_size


class TensorBoardLogger:
    """Event files for TensorBoard, one scalar per figure, in ``tensorboard`` of the run directory.

    Args:
        flush_s: Seconds after which the events are written to the disk at the latest.

    Raises:
        ModuleNotFoundError: At the start, if tensorboard is not installed.
    """

    def __init__(self, *, flush_s: int = 30) -> None:
        self._flush_s = flush_s
        self._folder = Path()
        self._config: dict[str, Any] = {}
        self._writer: Any = None
        self._last = 0

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """See :meth:`Logger.start`."""
        _optional("tensorboard", logger="tensorboard")
        self._folder, self._config = run_dir / "tensorboard", config

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """See :meth:`Logger.log`."""
        if self._writer is None:
            self._open(first_round=round_)
        self._last = round_
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_)

    def close(self, summary: dict[str, Any]) -> None:
        """See :meth:`Logger.close`; numbers become ``summary/<name>``, all entries a text."""
        if self._writer is None:
            self._open(first_round=0)
        for name, value in _numbers(summary).items():
            self._writer.add_scalar(f"summary/{name}", value, self._last)
        self._writer.add_text("summary", _as_code(summary), self._last)
        self._writer.close()
        self._writer = None

    def _open(self, first_round: int) -> None:
        """Opens the event file; events of a resumed run hide earlier ones from this round on."""
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(
            log_dir=str(self._folder), purge_step=first_round, flush_secs=self._flush_s
        )
        self._writer.add_text("config", _as_code(self._config), first_round)


class MlflowLogger:
    """A run in MLflow, with the configuration as parameters and as ``config.json``.

    A resumed run becomes a new MLflow run.

    Args:
        experiment: Name of MLflow's experiment, made when it does not exist.
        run_name: Name of the run; None takes the name of the run directory.
        tracking_uri: Server or folder; None is MLflow's own default (``MLFLOW_TRACKING_URI``).

    Raises:
        ModuleNotFoundError: At the start, if mlflow is not installed.
    """

    def __init__(
        self,
        *,
        experiment: str = "fedsim",
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self._experiment = experiment
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self._mlflow: Any = None

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """See :meth:`Logger.start`."""
        self._mlflow = _optional("mlflow", logger="mlflow")
        if self._tracking_uri is not None:
            self._mlflow.set_tracking_uri(self._tracking_uri)
        self._mlflow.set_experiment(self._experiment)
        self._mlflow.start_run(run_name=self._run_name or run_dir.name)
        entries = list(flatten(config).items())
        for i in range(0, len(entries), 100):  # a request to MLflow may hold 100 parameters
            self._mlflow.log_params(dict(entries[i : i + 100]))
        self._mlflow.log_dict(config, "config.json")

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """See :meth:`Logger.log`."""
        self._mlflow.log_metrics(values, step=round_)

    def close(self, summary: dict[str, Any]) -> None:
        """See :meth:`Logger.close`; all entries become ``summary.json``, numbers metrics."""
        figures = {f"summary/{name}": value for name, value in _numbers(summary).items()}
        self._mlflow.log_metrics(figures)
        self._mlflow.log_dict(summary, "summary.json")
        self._mlflow.end_run()


class WandbLogger:
    """A run in Weights & Biases, kept in ``wandb`` of the run directory.

    A resumed run becomes a new run of the project.

    Args:
        project: Name of the project.
        entity: User or team; None is the one that is logged in.
        run_name: Name of the run; None takes the name of the run directory.
        mode: ``online`` sends at once, ``offline`` keeps the run for ``wandb sync``, ``disabled``
            does nothing.

    Raises:
        ModuleNotFoundError: At the start, if wandb is not installed.
    """

    def __init__(
        self,
        *,
        project: str = "fedsim",
        entity: str | None = None,
        run_name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "offline",
    ) -> None:
        self._project = project
        self._entity = entity
        self._run_name = run_name
        self._mode = mode
        self._run: Any = None

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        """See :meth:`Logger.start`."""
        self._run = _optional("wandb", logger="wandb").init(
            project=self._project,
            entity=self._entity,
            name=self._run_name or run_dir.name,
            mode=self._mode,
            dir=str(run_dir),
            config=config,
        )

    def log(self, round_: int, values: dict[str, float], /) -> None:
        """See :meth:`Logger.log`."""
        self._run.log(values, step=round_)

    def close(self, summary: dict[str, Any]) -> None:
        """See :meth:`Logger.close`."""
        self._run.summary.update(summary)
        self._run.finish()


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with dotted names.

    >>> flatten({"seed": 1, "clock": {"rounds": [2, 3]}})
    {'seed': 1, 'clock.rounds': [2, 3]}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inner = flatten(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{key}".removesuffix("."): part for key, part in inner.items()}
    return flat


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a summary, by dotted name."""
    return {
        name: float(value)
        for name, value in flatten(summary).items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    }


def _as_code(content: Mapping[str, Any]) -> str:
    """The content as JSON in a Markdown code block."""
    return f"```\n{json.dumps(content, indent=2, default=str)}\n```"


def _optional(package: str, *, logger: str) -> Any:
    """A package that only one logger needs."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"logger={logger} needs the package {package}, which is not installed: "
            f"pip install 'fedsim-lab[{logger}]'",
            name=package,
        ) from error
