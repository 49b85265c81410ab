"""What checkpoints cost, as a share of a round of the small-CNN benchmark.

    python benchmarks/checkpoint.py            a table, and benchmarks/results/checkpoint.json
    python benchmarks/checkpoint.py --rounds 6 fewer rounds

The workload is that of ``benchmarks/engine.py``: 100 clients, LeNet, 50 examples each. Once with
clients that remember nothing, and once with Adam's moments kept at every client, which is the most
there is to write: two models a client. Times are CPU seconds; ``auto`` is what runs do by default.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from engine import LR, OUT, SEED, Row, setting
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.backbones.vision import LeNet
from fedsim.checkpoint import Checkpoints, Schedule
from fedsim.client import initial_model
from fedsim.engine import settle_process
from fedsim.grid import LocalGrid
from fedsim.interruption import Interruption
from fedsim.loop import Loop
from fedsim.results import Results
from fedsim.training import LocalTraining
from scenarios.partition import IID


def measure(name: str, *, schedule: Schedule, moments: bool, rounds: int) -> Row:
    """CPU seconds at the end of a round, against those of the round itself."""
    common = setting(
        num_clients=100, examples=5000, shape=(1, 28, 28), backbone=LeNet, partition=IID()
    )
    optimizer = partial(torch.optim.Adam if moments else torch.optim.SGD, lr=LR)
    training = LocalTraining(optimizer=optimizer, batch_size=10, keep_optimizer=moments)
    client = SGD(common, training=training)
    grid = LocalGrid(client_app_of(lambda _: client), 100, raise_errors=True)
    strategy = FedAvg(1.0, 0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1)
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder), personal=False)
        kept = Checkpoints(
            Path(folder), schedule, node={}, versions={}, interruption=Interruption()
        )
        kept.attach(grid, strategy)
        loop = Loop(strategy=strategy, grid=grid, roster=grid.roster, clock=common.clock, seed=SEED)
        trained, noted = [], []
        begun = time.process_time()
        for log, arrays in loop.run(to_record(dict(initial_model(common).state_dict()))):
            over = time.process_time()
            kept.note(log.tick.round, arrays, results, 0.0)
            done = time.process_time()
            if log.tick.round > 0:
                trained.append(over - begun)
                noted.append(done - over)
            begun = time.process_time()
            if log.tick.round == rounds:
                break
        results.close()
        size = sum(path.stat().st_size for path in Path(folder).glob("checkpoints/*")) / 1e6
    share = sum(noted) / sum(trained)
    if schedule.every == 1:
        share = statistics.median(noted) / statistics.median(trained)
    return {
        "measure": name,
        "value": 100 * share,
        "unit": "%",
        "detail": f"round {statistics.median(trained):.2f} s, its end at most"
        f" {1e3 * max(noted):.1f} ms, {size:.1f} MB on disk",
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="rounds a measurement (default 12)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    settle_process()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    every = {"auto": Schedule(), "every round": Schedule(every=1), "never": Schedule(every=None)}
    results = [
        measure(f"{what}, {when}", schedule=schedule, moments=moments, rounds=rounds)
        for what, moments in (("no client memory", False), ("Adam's moments kept", True))
        for when, schedule in every.items()
    ]
    table = Table(title=f"Checkpoints, share of a round's CPU time, torch {torch.__version__}")
    for column in ("measure", "value", "detail"):
        table.add_column(column)
    for row in results:
        table.add_row(str(row["measure"]), f"{row['value']:.2f} {row['unit']}", str(row["detail"]))
    Console(width=140).print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "checkpoint.json").write_text(json.dumps({"argv": sys.argv, "rows": results}, indent=2))


if __name__ == "__main__":
    main()
