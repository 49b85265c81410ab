"""Rounds in worker processes against the same rounds in one process, in one run.

    python benchmarks/workers.py                 1 and 2 workers; a table and results/workers.json
    python benchmarks/workers.py --workers 1 2 4 --rounds 10

100 clients, all a round, 50 images each, small CNN (29,066 parameters), batches of 10: one by one,
and at once (`engine.cohort=auto`). All settings take turns, round by round, so that they see the
same machine; figures are medians over rounds. Wall time is what workers are for, and it says
nothing on a machine that is busy with other work: the load is printed beside it. CPU seconds, of
all processes, show what sharing costs.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from cohort import WORKLOADS, fedsim_rounds, setting
from rich.console import Console
from rich.table import Table

from fedsim.cohort_plan import CohortSize
from fedsim.engine import num_cores, settle_process

OUT = Path(__file__).parent / "results"
SIZES: tuple[CohortSize, ...] = ("off", "auto")


def cpu_seconds() -> float:
    """What this process and all workers have used."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default 1 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settle_process()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = WORKLOADS["W1"]
    runs: dict[tuple[CohortSize, int], Iterator[object]] = {
        (cohort, count): fedsim_rounds(setting(work), work, cohort, count)
        for cohort in SIZES
        for count in options.workers
    }
    wall: dict[tuple[CohortSize, int], list[float]] = {key: [] for key in runs}
    cpu: dict[tuple[CohortSize, int], list[float]] = {key: [] for key in runs}
    for round_ in range(options.rounds + 1):
        for key, rounds in runs.items():
            began, used = time.perf_counter(), cpu_seconds()
            next(rounds)
            if round_ > 0:  # the first starts the workers
                wall[key].append(time.perf_counter() - began)
                cpu[key].append(cpu_seconds() - used)
    load = os.getloadavg()[0]
    title = f"torch {torch.__version__}, {num_cores()} cores, load {load:.1f}"
    table = Table(title=title)
    for column in ("cohort", "workers", "wall s/round", "of 1 process", "CPU s/round"):
        table.add_column(column)
    rows = []
    for (cohort, count), seconds in wall.items():
        base = wall[cohort, options.workers[0]]
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        row = {
            "cohort": cohort,
            "workers": count,
            "wall_s": statistics.median(seconds),
            "ratio": ratio,
            "cpu_s": statistics.median(cpu[cohort, count]),
        }
        rows.append(row)
        table.add_row(
            str(cohort), str(count), f"{row['wall_s']:.3f}", f"{ratio:.2f}", f"{row['cpu_s']:.3f}"
        )
    Console().print(table)
    OUT.mkdir(exist_ok=True)
    content = {"argv": sys.argv, "load": load, "cores": num_cores(), "rows": rows}
    (OUT / "workers.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
