"""What the benchmark shows: medians over repeats, a table and a picture."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from contestants.entries import LOOP

Row = dict[str, Any]
_COLUMNS = (
    "contestant",
    "wall ms/round",
    "CPU ms/round",
    "of the plain loop",
    "first, s",
    "first, CPU s",
    "MB",
    "apart",
)


def rows_of(workload: str, runs: dict[str, list[Row]], gaps: dict[str, float | None]) -> list[Row]:
    """One row a contestant: medians over repeats, ratios within a repeat.

    Args:
        workload: Its name.
        runs: What every contestant reported, one entry a repeat; empty ones failed.
        gaps: Largest difference of the final weights to the plain loop's, or None.
    """
    rows = []
    for name, repeats in runs.items():
        if not repeats:
            continue
        wall, cpu = ([_median_round(run[clock]) for run in repeats] for clock in ("wall", "cpu"))
        base = {run["repeat"]: _median_round(run["cpu"]) for run in runs.get(LOOP, ())}
        ratios = [
            spent / base[run["repeat"]]
            for spent, run in zip(cpu, repeats, strict=True)
            if run["repeat"] in base
        ]
        rows.append(
            {
                "workload": workload,
                "contestant": name,
                "wall_ms": 1e3 * statistics.median(wall),
                "cpu_ms": 1e3 * statistics.median(cpu),
                "ratio": statistics.median(ratios) if ratios else None,
                "ratios": [min(ratios), max(ratios)] if ratios else None,
                "first_s": statistics.median(run["wall"][1] for run in repeats),
                "first_cpu_s": statistics.median(run["cpu"][1] for run in repeats),
                "memory_mb": statistics.median(run["memory"] for run in repeats) / 2**20,
                "gap": gaps.get(name),
                "versions": repeats[-1]["versions"],
                "repeats": len(repeats),
                "load": [f(run["load"] for run in repeats) for f in (min, max)],
            }
        )
    return rows


def _median_round(marks: Sequence[float]) -> float:
    """Seconds of a round after the first, which loads code and fills caches."""
    return statistics.median(after - before for before, after in pairwise(marks[1:]))


def show(rows: Sequence[Row]) -> None:
    """Print a table for every workload."""
    console = Console(width=130)
    for workload in dict.fromkeys(row["workload"] for row in rows):
        table = Table(title=workload)
        for number, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            if row["workload"] == workload:
                table.add_row(row["contestant"], *cells(row))
        console.print(table)
    versions = {f"{n} {v}" for row in rows for n, v in row["versions"].items()}
    console.print(", ".join(sorted(versions)), soft_wrap=True)
    console.print(
        "first: from the start of the process to the end of round 1; MB: most memory at once;"
        " apart: largest difference of the result to the plain loop's",
        soft_wrap=True,
    )


def cells(row: Row) -> list[str]:
    """The numbers of a row as the table shows them."""
    ratio = "" if row["ratio"] is None else "{:.2f} ({:.2f} to {:.2f})".format(
        row["ratio"], *row["ratios"]
    )  # fmt: skip
    return [
        f"{row['wall_ms']:.1f}",
        f"{row['cpu_ms']:.1f}",
        ratio,
        f"{row['first_s']:.1f}",
        f"{row['first_cpu_s']:.1f}",
        f"{row['memory_mb']:.0f}",
        "" if row["gap"] is None else f"{row['gap']:.0e}",
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """CPU time of a round, time to the end of the first round and memory, a line a workload."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    shown = {w: [row for row in rows if row["workload"] == w] for w in workloads}
    heights = [0.6 + 0.25 * len(part) for part in shown.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.6), layout="constrained")
    grid = figure.subplots(len(workloads), 3, squeeze=False, height_ratios=heights, sharey="row")
    titles = {
        "cpu_ms": "CPU ms a round",
        "first_cpu_s": "CPU s to the end of round 1",
        "memory_mb": "memory, MB",
    }
    for line, (workload, part) in zip(grid, shown.items(), strict=True):
        names = [row["contestant"] for row in part]
        for axes, (entry, title) in zip(line, titles.items(), strict=True):
            colours = ["tab:orange" if n.startswith("fedsim") else "tab:blue" for n in names]
            axes.barh(names, [row[entry] for row in part], color=colours)
            axes.set_title(f"{workload}: {title}", fontsize=9)
            if entry == "cpu_ms":
                axes.set_xscale("log")
                least = min(row[entry] for row in part)
                axes.set_xlim(left=least / 3)  # else its bar has no length
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.xaxis.set_minor_formatter(NullFormatter())
        line[0].invert_yaxis()
    figure.savefig(path, dpi=120)
