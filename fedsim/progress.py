"""What a run shows on the terminal: a bar with the clock, and a table at the end."""

import math
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedsim.tables import Row

if TYPE_CHECKING:  # reports format numbers too, and need neither torch nor Flower
    from fedsim.clock import Clock
    from fedsim.loop import RoundLog

_SHOWN = 10  # experiences of an accuracy matrix that a terminal has room for
_REJECTIONS = 10  # lines of refused updates
_TITLES = {
    "test_accuracy": "test accuracy",
    "average_accuracy": "average accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "worst_decile_accuracy": "worst decile of clients",
}


class ProgressBar:
    """A bar over rounds with the clock and the newest accuracy; silent when ``shown`` is false."""

    def __init__(self, clock: "Clock", *, shown: bool) -> None:
        self._clock = clock
        self._accuracy = math.nan
        self._bar = Progress(
            TextColumn("experience {task.fields[experience]}"),
            BarColumn(),
            TextColumn("round"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[accuracy]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not shown,
            transient=True,
        )

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        experience = f"1/{self._clock.num_experiences}"
        self._task = self._bar.add_task(
            "", total=self._clock.num_rounds, experience=experience, accuracy="accuracy   -  "
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, log: "RoundLog", accuracy: float) -> None:
        """Show a finished round."""
        if not math.isnan(accuracy):
            self._accuracy = accuracy
        self._bar.update(
            self._task,
            completed=log.tick.round,
            experience=f"{max(log.tick.experience, 0) + 1}/{self._clock.num_experiences}",
            accuracy=f"accuracy {number(self._accuracy)}",
        )


def number(value: Any) -> str:
    """Three decimals, or a dash where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}"


def size(count: int) -> str:
    """Bytes in a unit that reads well."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def matrix_table(matrix: Any, title: str) -> Table:
    """The accuracy matrix: one line per learned experience, one column per tested one.

    Of a long stream only some experiences are shown, evenly spaced from the first to the last.
    """
    length = matrix.shape[0]
    shown = sorted({round(i * (length - 1) / (_SHOWN - 1)) for i in range(_SHOWN)})
    if length <= _SHOWN:
        shown = list(range(length))
    else:
        title = f"{title} ({len(shown)} of {length} experiences)"
    table = Table(title=title, title_justify="left")
    table.add_column("after", justify="right")
    for e in shown:
        table.add_column(f"test {e + 1}", justify="right")
    for t in shown:
        table.add_row(f"experience {t + 1}", *(number(float(matrix[t, e])) for e in shown))
    return table


def summary_table(summary: Row) -> Table:
    """The numbers of a finished run."""
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for key, title in _TITLES.items():
        if summary.get(key) is not None:
            table.add_row(title, number(summary[key]))
    table.add_section()
    table.add_row("models tested", str(summary["model"]))
    table.add_row("clients, rounds", f"{summary['num_clients']}, {summary['rounds']}")
    table.add_row("uploaded", size(summary["upload_bytes"]))
    table.add_row("downloaded", size(summary["download_bytes"]))
    table.add_row("seconds a round", f"{summary['seconds_per_round']:.3f}")
    if summary["rejected_updates"]:
        table.add_row("rejected updates", str(summary["rejected_updates"]), style="red")
    return table


def rejections_table(rejections: Sequence[Row]) -> Table:
    """Updates that were refused, alike ones of a client in one line; the first few of many."""
    rounds: dict[tuple[int, str, str], list[int]] = {}
    for row in rejections:
        rounds.setdefault((row["client"], row["kind"], row["reason"]), []).append(row["round"])
    table = Table(title="Rejected updates", title_justify="left")
    for name in ("client", "rounds"):
        table.add_column(name, justify="right")
    table.add_column("reason")
    for (client, _, reason), when in list(rounds.items())[:_REJECTIONS]:
        first = ", ".join(map(str, when[:3])) + (f" … {when[-1]}" if len(when) > 3 else "")
        table.add_row(str(client), first, escape(reason))
    if len(rounds) > _REJECTIONS:
        table.add_row("", "", f"and {len(rounds) - _REJECTIONS} more, see rejections.jsonl")
    return table
