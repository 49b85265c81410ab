"""What a run is judged by: its evaluations as rows, and the accuracy entries of the summary."""

import math
from typing import Any

from fedsim import metrics
from fedsim.evaluation import Evaluation
from fedsim.loop import RoundLog
from fedsim.tables import MEASURED, Row, plain
from fedsim.wire import Upload


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
        **{name: plain(value) for name, value in values.items()},
    }


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


def _server(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["client"] is None]


def _group(rows: list[Row], key: str) -> list[list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [groups[name] for name in sorted(groups)]
