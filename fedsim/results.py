"""The run directory: rows as they come, and the summary at the end.

``rows.jsonl`` has one line per evaluation: ``round``, ``experience`` (the server's, ``-1`` before
training), ``client`` (null for the server's own test of the global model), ``model`` (``global`` or
``personal``), ``eval_experience``, ``accuracy``, ``accuracy_among_own`` and ``accuracy_among_met``
(see :class:`fedsim.scoring.Score`), ``loss``, ``num_examples``, and where clients are validated
``val_accuracy`` and ``val_examples``. ``rounds.jsonl`` has one line per round,
``rejections.jsonl`` one per refused update.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import IO, Any

from flwr.app import ArrayRecord

from fedsim import metrics
from fedsim.arrays import to_params
from fedsim.evaluation import Evaluation
from fedsim.loop import RoundLog
from fedsim.tables import MEASURED, Row, write_parquet
from fedsim.wire import Upload


class RunExistsError(ValueError):
    """The run directory already holds a finished or interrupted run."""


class Results:
    """Writes what a run measures, line by line, so that an interrupted run keeps what it had.

    Args:
        run_dir: Where the files go; created when needed.
        personal: Whether client evaluations measure personal models.
        overwrite: Whether an earlier run in the same directory may be replaced.

    Raises:
        RunExistsError: If the directory holds results and ``overwrite`` is false.
    """

    def __init__(self, run_dir: Path, *, personal: bool, overwrite: bool = False) -> None:
        self.run_dir = run_dir
        self.personal = personal
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / "rounds.jsonl").exists() and not overwrite:
            raise RunExistsError(
                f"{run_dir} already holds a run; choose another hydra.run.dir, or replace it with"
                " overwrite=true"
            )
        self._rows = _open(run_dir / "rows.jsonl")
        self._rounds = _open(run_dir / "rounds.jsonl")
        self._rejections = _open(run_dir / "rejections.jsonl")
        (run_dir / "summary.json").unlink(missing_ok=True)
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, dict[str, int]] = {"upload": {}, "download": {}}
        self.measures: dict[str, float] = {}  # the newest value of each
        self.rejected = 0
        self.rounds = 0

    def record(self, log: RoundLog, wall_s: float) -> None:
        """Write one round's log."""
        for row in rows_of(log, self.personal):
            _write(self._rows, row)
        for rejection in log.rejections:
            self.rejected += 1
            _write(
                self._rejections,
                {"round": rejection.round, "client": rejection.client, "reason": rejection.reason},
            )
        if log.tick.round > 0:
            self.rounds += 1
            _write(self._rounds, _round_row(log, wall_s))
            self.measures |= log.measures
            _accumulate(self.seconds, log.seconds)
            _accumulate(self.bytes["upload"], log.upload_bytes)
            _accumulate(self.bytes["download"], log.download_bytes)
        for file in (self._rows, self._rounds, self._rejections):
            file.flush()

    def close(self) -> None:
        """Close the files."""
        for file in (self._rows, self._rounds, self._rejections):
            file.close()

    def rows(self) -> list[Row]:
        """Every evaluation row so far."""
        with (self.run_dir / "rows.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def finish(self, arrays: ArrayRecord, facts: Row, evaluation: Evaluation | None = None) -> Row:
        """Write ``rows.parquet`` and ``summary.json``; returns the summary.

        Args:
            arrays: The final server arrays, for the digest.
            facts: Further entries of the summary, e.g. ``num_clients``.
            evaluation: How the run is judged; by default on its last round.
        """
        self.close()
        rows = self.rows()
        write_parquet(rows, self.run_dir / "rows.parquet")
        summary = {
            **summarise(rows, self.personal, evaluation or Evaluation()),
            **{f"{way}_bytes": sum(sizes.values()) for way, sizes in self.bytes.items()},
            **{
                f"{way}_bytes/{record}": size
                for way, sizes in self.bytes.items()
                for record, size in sorted(sizes.items())
            },
            **{f"seconds/{phase}": round(s, 4) for phase, s in self.seconds.items()},
            **{f"measure/{name}": _plain(v) for name, v in sorted(self.measures.items())},
            "rounds": self.rounds,
            "rejected_updates": self.rejected,
            "digest": digest(arrays),
            **facts,
        }
        write_json(self.run_dir / "summary.json", summary)
        return summary


def rows_of(log: RoundLog, personal: bool) -> list[Row]:
    """Evaluation rows of a round: the server's first, then the clients', in client order."""
    rows = [] if log.server is None else _rows(log, log.server, None, "global")
    model = "personal" if personal else "global"
    for upload in log.evaluations:
        rows += _rows(log, upload, upload.client_id, model)
    return rows


def accuracy_of(log: RoundLog, personal: bool, evaluation: Evaluation | None = None) -> float:
    """Accuracy over all test data of a round's evaluation; NaN without one.

    The server's own evaluation counts if there is one and the models are not personal.
    """
    return (evaluation or Evaluation()).accuracy(judged(rows_of(log, personal), personal))


def judged(rows: list[Row], personal: bool) -> list[Row]:
    """The rows that a method is judged by: the server's tests if there are any, else the clients'.

    Personal methods are always judged by the clients' tests of their own models.
    """
    server = _server(rows)
    own = [row for row in rows if row["client"] is not None]
    return own if personal or not server else server


def summarise(rows: list[Row], personal: bool, evaluation: Evaluation | None = None) -> Row:
    """The accuracy entries of the summary.

    Global methods are judged by the server's test of the global model on all test data, personal
    ones by the clients' tests of their own models. Definitions are in :mod:`fedsim.metrics` and
    :class:`fedsim.evaluation.Evaluation`; a value that does not exist, e.g. forgetting on one
    experience, is null.
    """
    judge = evaluation or Evaluation()
    own = [row for row in rows if row["client"] is not None]
    counted = judged(rows, personal)
    matrix = metrics.accuracy_matrix(counted, weighting=judge.weighting) if counted else None
    last = max((row["round"] for row in counted), default=0)
    chosen = judge.chosen_round(counted)
    at_chosen = [row for row in counted if row["round"] == chosen]
    by_client = [
        judge.accuracy(part) for part in _group([r for r in own if r["round"] == chosen], "client")
    ]
    values: dict[str, float] = {
        "test_accuracy": judge.accuracy(at_chosen),
        "test_accuracy_last": judge.accuracy(row for row in counted if row["round"] == last),
    }
    if judge.validates:
        values |= {"val_accuracy": judge.accuracy(at_chosen, "val"), "chosen_round": chosen}
    if matrix is not None:
        values |= {
            "average_accuracy": metrics.average_accuracy(matrix),
            "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix),
            "forgetting": metrics.forgetting(matrix),
            **metrics.explained_forgetting(counted),
            "backward_transfer": metrics.backward_transfer(matrix),
            "forward_transfer": metrics.forward_transfer(
                matrix, metrics.baseline_accuracy(_server(rows), num_experiences=len(matrix))
            ),
        }
    values["worst_decile_accuracy"] = metrics.worst_decile(by_client) if by_client else math.nan
    return {
        "model": "personal" if personal else "global",
        **{name: _plain(value) for name, value in values.items()},
    }


def digest(arrays: ArrayRecord) -> str:
    """SHA-256 over name, dtype, shape and bytes of every array, in the order of the names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(to_params(arrays).items()):
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_json(path: Path, content: Row) -> None:
    """Write a JSON file whole or not at all."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8")


def _write(file: IO[str], row: Row) -> None:
    file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")


def _plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lists(upload: Upload, *names: str) -> list[list[float]]:
    return [list(upload.metrics[name]) for name in names]  # type: ignore[arg-type]


def _rows(log: RoundLog, upload: Upload, client: int | None, model: str) -> list[Row]:
    columns = [name for name in MEASURED if name in upload.metrics]
    rows = []
    for experience, values in enumerate(zip(*_lists(upload, *columns, "examples"), strict=True)):
        *measured, examples = values
        row: Row = {
            "round": log.tick.round,
            "experience": log.tick.experience,
            "client": client,
            "model": model,
            "eval_experience": experience,
            **dict(zip(columns, measured, strict=True)),
            "num_examples": int(examples),
        }
        if "val_examples" in row:
            row["val_examples"] = int(row["val_examples"])
        if row["num_examples"] or row.get("val_examples"):
            rows.append(row)
    return rows


def _round_row(log: RoundLog, wall_s: float) -> Row:
    return {
        "round": log.tick.round,
        "experience": log.tick.experience,
        "step": log.tick.step,
        "wall_s": round(wall_s, 6),
        **{f"{phase}_s": round(s, 6) for phase, s in log.seconds.items()},
        "num_clients": len(log.cohort),
        "num_idle": len(log.idle),
        "num_rejected": len(log.rejections),
        "num_examples": log.num_examples,
        "train_loss": log.train_loss,
        "upload_bytes": sum(log.upload_bytes.values()),
        "download_bytes": sum(log.download_bytes.values()),
        "cohort": log.cohort,
        **({"measures": {n: _plain(v) for n, v in log.measures.items()}} if log.measures else {}),
    }


def _accumulate(total: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0) + value


def _server(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["client"] is None]


def _group(rows: list[Row], key: str) -> list[list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [groups[name] for name in sorted(groups)]
