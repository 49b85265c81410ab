"""A million registered clients: set-up, memory and rounds against a thousand, in one run.

    python benchmarks/million.py                        1,000,000 against 1,000, 100 a round
    python benchmarks/million.py --clients 100000       another number
    python benchmarks/million.py --cohort auto          clients trained at once

Two scenarios. `data`: 20 examples a client, resampled from 2,000, and a small model; of many
clients each is a new one, whose data has to be cut, while few come back. `state`: clients without
data that add to a memory of 2,600 bytes of their own, of which 200 are held in memory and the
others on disk (`engine.keep_states=200`). CPU seconds of one thread, medians over rounds that take
turns; resident memory is the whole process's, at the end.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
from cohort import WORKLOADS, fedsim_rounds, setting
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table

from fedsim.arrays import to_params, to_record
from fedsim.averaging import configured
from fedsim.cohort_plan import CohortSize
from fedsim.engine import LocalEngine, settle_process

OUT = Path(__file__).parent / "results"
FEW, COHORT, KEPT = 1000, 100, 200
Row = dict[str, float | str]


def seconds(step: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def data_rounds(num_clients: int, *, cohort: CohortSize, like: str = "W3") -> Iterator[object]:
    """Rounds of clients with 20 examples of their own."""
    work = replace(WORKLOADS[like], clients=num_clients, cohort=COHORT, samples=20)
    return fedsim_rounds(setting(work), work, cohort)


def remembering() -> ClientApp:
    """A client that adds to what it remembers."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = context.state.get("memory")
        values = torch.zeros(650) if seen is None else to_params(seen)["w"] + 1
        context.state["memory"] = to_record({"w": values})
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def state_rounds(num_clients: int, folder: Path) -> Iterator[object]:
    """Rounds of clients that remember something."""
    engine = LocalEngine(keep_states=KEPT)
    grid = engine.grid(remembering(), num_clients=num_clients, seed=0, run_dir=folder)
    strategy = FedAvg(COHORT / num_clients, 0.0, min_train_nodes=1, min_available_nodes=1)
    arrays = to_record({"w": torch.zeros(650)})
    round_ = 0
    while True:
        round_ += 1
        sent = configured(strategy, round_, arrays, grid, "train")
        yield strategy.aggregate_train(round_, grid.send_and_receive(sent))


def compare(
    name: str, start: Callable[[int], Iterator[object]], many: int, rounds: int
) -> list[Row]:
    """Set-up and rounds of many clients against few."""
    small = start(FEW)
    next(small)
    before = time.perf_counter()
    large = start(many)
    next(large)
    setup = time.perf_counter() - before
    pairs = [
        (seconds(lambda: next(large)), seconds(lambda: next(small))) for _ in range(rounds + 3)
    ][3:]
    ratio = statistics.median(a / b for a, b in pairs)
    base = statistics.median(b for _, b in pairs)
    return [
        {"measure": f"{name}: set-up and first round, wall", "value": setup, "unit": "s"},
        {"measure": f"{name}: round of {FEW:,} registered", "value": 1e3 * base, "unit": "ms"},
        {"measure": f"{name}: round of {many:,} against it", "value": ratio, "unit": "x"},
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--rounds", type=int, default=30, help="default 30")
    parser.add_argument("--cohort", choices=["off", "auto"], default="off", help="default off")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settle_process()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:

        def remember(num_clients: int) -> Iterator[object]:
            return state_rounds(num_clients, Path(folder) / str(num_clients))

        linear = partial(data_rounds, cohort=options.cohort)
        rows = compare("data", linear, options.clients, options.rounds)
        cnn = partial(data_rounds, cohort=options.cohort, like="W1")
        rows += compare("data, small CNN", cnn, options.clients, options.rounds // 3)
        rows += compare("state", remember, options.clients, options.rounds)
        files = sum(1 for _ in Path(folder).glob(f"{options.clients}/clients/*/*.state"))
    rows.append({"measure": "state: clients on disk", "value": files, "unit": ""})
    memory = psutil.Process().memory_info().rss / 1e9
    rows.append({"measure": "resident memory at the end", "value": memory, "unit": "GB"})
    table = Table(title=f"{options.clients:,} registered clients, {COHORT} a round")
    for column in ("measure", "value"):
        table.add_column(column)
    for row in rows:
        table.add_row(str(row["measure"]), f"{row['value']:.4g} {row['unit']}")
    Console().print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "million.json").write_text(json.dumps({"argv": sys.argv, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
