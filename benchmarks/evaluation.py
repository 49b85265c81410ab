"""Tests of many small clients: one by one, at once, and as a plain PyTorch loop, in one run.

    python benchmarks/evaluation.py              100 clients with 20 test examples each
    python benchmarks/evaluation.py --clients 1000 --examples 5

The loop is what one writes by hand: the model in evaluation mode, and for every client accuracy
and mean loss of its test examples, all data in memory. `one by one` and `at once` are the tests
of a whole round, messages and replies included, with `engine.cohort` off and auto; they also tell
accuracies among fewer classes. CPU seconds of one thread, medians over rounds that take turns.
"""

import argparse
import gc
import json
import logging
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from cohort import WORKLOADS, seconds
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.averaging import configured
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.cohort_plan import CohortSize
from fedsim.grid import LocalGrid
from fedsim.model import Model
from fedsim.training import LocalTraining
from fedsim.wire import to_upload
from scenarios.order import SameOrder
from scenarios.partition import Resampled
from scenarios.single import Single
from scenarios.toy import toy

OUT = Path(__file__).parent / "results"
Accuracies = list[float]


def setting(like: str, clients: int, examples: int) -> Setting:
    """A model of a workload of `cohort.py` and clients with so many test examples."""
    work = WORKLOADS[like]
    scenario = Single(
        dataset=toy(shape=work.shape, train_examples=2000, test_examples=2000),
        partition=Resampled(samples_per_client=1, test_samples_per_client=examples),
        order=SameOrder(),
        num_clients=clients,
        seed=0,
    )
    return Setting(
        scenario=scenario,
        clock=Clock(num_experiences=1, rounds_per_experience=10_000),
        model=lambda: Model(work.backbone(input_shape=work.shape), 10),
        seed=0,
    )


def by_hand(common: Setting) -> Iterator[Accuracies]:
    """Every client's accuracy by a plain loop."""
    model = initial_model(common).eval()
    shards = [
        common.scenario.shard(client, 0, "test") for client in range(common.scenario.num_clients)
    ]
    while True:
        found = []
        with torch.no_grad():
            for shard in shards:
                scores = model(shard.inputs)
                float(cross_entropy(scores, shard.targets))
                found.append(float((scores.argmax(1) == shard.targets).float().mean()))
        yield found


def by_fedsim(common: Setting, cohort: CohortSize) -> Iterator[Accuracies]:
    """Every client's accuracy, as it comes back in replies."""
    training = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1))
    client = SGD(common, training=training)
    app = client_app_of(lambda _: client)
    grid = LocalGrid(app, common.scenario.num_clients, raise_errors=True, cohort=cohort)
    strategy = FedAvg(0.0, 1.0, min_evaluate_nodes=1, min_available_nodes=1)
    arrays = to_record(dict(initial_model(common).state_dict()))
    round_ = 0
    while True:
        round_ += 1
        sent = configured(strategy, round_, arrays, grid, "evaluate")
        uploads = [to_upload(reply, -1) for reply in grid.send_and_receive(sent)]
        yield [upload.metrics["accuracy"][0] for upload in uploads]  # type: ignore[index]


def compare(like: str, clients: int, examples: int, rounds: int) -> list[dict[str, object]]:
    """Milliseconds of a round of tests each way, and ratios to the loop."""
    common = setting(like, clients, examples)
    ways: dict[str, Iterator[Accuracies]] = {
        "plain loop": by_hand(common),
        "one by one": by_fedsim(common, "off"),
        "at once": by_fedsim(common, "auto"),
    }
    last: dict[str, Accuracies] = {}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    gc.collect()
    gc.freeze()
    for turn in range(rounds + 2):
        for way, tests in ways.items():

            def step(way: str = way, tests: Iterator[Accuracies] = tests) -> None:
                last[way] = next(tests)

            taken = seconds(step)
            if turn >= 2:
                spent[way].append(taken)
    return [
        {
            "model": like,
            "way": way,
            "ms": 1e3 * statistics.median(times),
            "ratio": statistics.median(
                a / b for a, b in zip(times, spent["plain loop"], strict=True)
            ),
            "apart": max(abs(a - b) for a, b in zip(last[way], last["plain loop"], strict=True)),
        }
        for way, times in spent.items()
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=100, help="default 100")
    parser.add_argument("--examples", type=int, default=20, help="of each, default 20")
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    for like in ("W2", "W1"):
        rows += compare(like, options.clients, options.examples, options.rounds)
    table = Table(title=f"Tests of {options.clients} clients, {options.examples} examples each")
    for column in ("model", "way", "ms a round", "of the plain loop", "accuracies apart"):
        table.add_column(column)
    names = {"W1": "small CNN", "W2": "logistic regression"}
    for row in rows:
        numbers = f"{row['ms']:.2f}", f"{row['ratio']:.2f} x", f"{row['apart']:.0e}"
        table.add_row(names[str(row["model"])], str(row["way"]), *numbers)
    Console(width=110).print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "evaluation.json").write_text(json.dumps({"argv": sys.argv, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
