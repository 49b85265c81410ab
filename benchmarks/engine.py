"""What the in-process engine costs, as ratios measured in one run.

    python benchmarks/engine.py            a table, and benchmarks/results/engine.json
    python benchmarks/engine.py --rounds 4 fewer rounds

Rounds of fedsim and of a plain PyTorch loop that does the same maths (same batches, same weights at
the end) are run in turn, so that both see the same machine; the figure is the median over rounds.
Times are CPU seconds: everything runs on one thread, so on an idle machine they are wall seconds.
"""

import argparse
import itertools
import json
import logging
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from clients.sgd import SGD
from fedsim import run_app
from fedsim.apps import client_app_of
from fedsim.backbones.vision import MLP, Flatten, LeNet
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.cohort_plan import CohortSize
from fedsim.engine import settle_process
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.seeding import generator
from fedsim.training import LocalTraining
from scenarios.order import SameOrder
from scenarios.partition import IID, Partition, Resampled
from scenarios.single import Single
from scenarios.toy import toy

LR, SEED = 0.05, 0
Row = dict[str, float | str]
OUT = Path(__file__).parent / "results"


def setting(
    *,
    num_clients: int,
    examples: int,
    shape: tuple[int, ...],
    backbone: Callable[..., nn.Module],
    partition: Partition,
) -> Setting:
    """A plain federated setting on toy data."""
    scenario = Single(
        dataset=toy(shape=shape, train_examples=examples, test_examples=10),
        partition=partition,
        order=SameOrder(),
        num_clients=num_clients,
        seed=SEED,
    )
    return Setting(
        scenario=scenario,
        clock=Clock(num_experiences=1, rounds_per_experience=10_000),
        model=lambda: Model(backbone(input_shape=scenario.input_shape), 10),
        seed=SEED,
    )


def fedsim_rounds(
    common: Setting, *, fraction: float, batch: int, cohort: CohortSize = "off"
) -> Iterator[ArrayRecord]:
    """Rounds of the engine, one at each ``next``."""
    optimizer = partial(torch.optim.SGD, lr=LR)
    client = SGD(common, training=LocalTraining(optimizer=optimizer, batch_size=batch))
    num_clients = common.scenario.num_clients
    app = client_app_of(lambda _: client)
    grid = LocalGrid(app, num_clients, raise_errors=True, cohort=cohort)
    strategy = FedAvg(fraction, 0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1)
    loop = Loop(strategy=strategy, grid=grid, roster=grid.roster, clock=common.clock, seed=SEED)
    from fedsim.arrays import to_record

    rounds = loop.run(to_record(dict(initial_model(common).state_dict())))
    next(rounds)  # the untrained model
    return (arrays for _, arrays in rounds)


def plain_rounds(common: Setting, *, batch: int) -> Iterator[list[torch.Tensor]]:
    """The same rounds as a loop over clients with one reused model."""
    model = initial_model(common)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR)
    shards = [common.scenario.shard(c, 0, "train") for c in range(common.scenario.num_clients)]
    glob = [p.detach().clone() for p in params]
    for round_ in itertools.count(1):
        total = [torch.zeros_like(g) for g in glob]
        count = 0
        for client, shard in enumerate(shards):
            with torch.no_grad():
                for p, g in zip(params, glob, strict=True):
                    p.copy_(g)
            order = torch.randperm(len(shard), generator=generator(SEED, "train", round_, client))
            x, y = shard.inputs[order], shard.targets[order]
            for i in range(0, len(y), batch):
                optimizer.zero_grad()
                cross_entropy(model(x[i : i + batch]), y[i : i + batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for t, p in zip(total, params, strict=True):
                    t.add_(p, alpha=len(y))
            count += len(y)
        glob = [t / count for t in total]
        yield glob


def timed(step: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of one call, and its result; all of it is one thread of this process."""
    start = time.process_time()
    result = step()
    return time.process_time() - start, result


def against_plain_loop(
    name: str, common: Setting, *, batch: int, rounds: int, cohort: CohortSize = "off"
) -> Row:
    """Median ratio of a fedsim round to the plain loop's, and how far the weights are apart."""
    ours = fedsim_rounds(common, fraction=1.0, batch=batch, cohort=cohort)
    plain = plain_rounds(common, batch=batch)
    ratios, seconds, best = [], [], math.inf
    for i in range(rounds + 2):
        a, arrays = timed(lambda: next(ours))
        b, glob = timed(lambda: next(plain))
        if i >= 2:  # the first rounds load code and fill caches
            ratios.append(a / b)
            best = min(best, a)
            seconds.append(b)
    got = arrays.to_torch_state_dict().values()  # type: ignore[attr-defined]
    gap = max(float((x - y).abs().max()) for x, y in zip(got, glob, strict=True))  # type: ignore[call-overload]
    return {
        "measure": f"{name}: time of a plain PyTorch loop",
        "value": statistics.median(ratios),
        "unit": "x",
        "detail": f"min {min(ratios):.2f}, max {max(ratios):.2f}, best round against best"
        f" {best / min(seconds):.2f}; plain round"
        f" {1e3 * statistics.median(seconds):.1f} ms; largest weight gap {gap:.0e}",
    }


def echo_app() -> ClientApp:
    """A client that returns what it got."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: object) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def no_op_round(rounds: int, clients: int = 100) -> Row:
    """Milliseconds per client of a round in which clients echo a small CNN."""
    model = Model(LeNet(input_shape=(1, 28, 28)), 10)
    grid = LocalGrid(echo_app(), clients)
    strategy = FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0)
    clock = Clock(num_experiences=1, rounds_per_experience=10_000)
    loop = Loop(strategy=strategy, grid=grid, roster=grid.roster, clock=clock, seed=SEED)
    run = loop.run(ArrayRecord(model.state_dict()))
    next(run)
    times = [timed(lambda: next(run))[0] for _ in range(rounds + 2)][2:]
    return {
        "measure": "round without training (29,066 parameters), per client",
        "value": 1e3 * statistics.median(times) / clients,
        "unit": "ms",
        "detail": f"{clients} clients, unmodified third-party ClientApp, Flower's FedAvg",
    }


def start_up() -> Row:
    """Seconds from run_app to the first message at a client."""
    first: list[float] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: object) -> Message:
        first.append(time.perf_counter())
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        model = Model(LeNet(input_shape=(1, 28, 28)), 10)
        strategy = FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0)
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=1)

    start = time.perf_counter()
    run_app(server, app, num_clients=100)
    return {
        "measure": "run_app to the first client",
        "value": first[0] - start,
        "unit": "s",
        "detail": "100 clients, packages already imported",
    }


def registered(
    rounds: int, shape: tuple[int, ...], backbone: Callable[..., nn.Module], model: str
) -> list[Row]:
    """Rounds of 100 clients among many registered ones, against few.

    Few clients come back, so that their data lies ready; of many, each is a new one whose data has
    to be cut.
    """
    many, few = 100_000, 1_000
    process = psutil.Process()

    def start(num_clients: int) -> Iterator[ArrayRecord]:
        common = setting(
            num_clients=num_clients,
            examples=2000,
            shape=shape,
            backbone=backbone,
            partition=Resampled(samples_per_client=20, test_samples_per_client=1),
        )
        return fedsim_rounds(common, fraction=100 / num_clients, batch=10)

    small = start(few)
    next(small)
    before = process.memory_info().rss
    seconds, large = timed(lambda: start(many))
    first, _ = timed(lambda: next(large))  # type: ignore[call-overload]
    pairs = [
        (timed(lambda: next(large))[0], timed(lambda: next(small))[0])  # type: ignore[call-overload]
        for _ in range(2 * rounds)
    ]
    grown = (process.memory_info().rss - before) / 1e6
    ratio = statistics.median(a / b for a, b in pairs)
    plain = statistics.median(b for _, b in pairs)
    return [
        {
            "measure": f"{many:,} registered clients: set-up and first round",
            "value": seconds + first,
            "unit": "s",
            "detail": f"100 sampled a round, {model}, 20 examples each",
        },
        {
            "measure": f"{many:,} registered clients: round against {few:,}",
            "value": ratio,
            "unit": "x",
            "detail": f"{model}; round with {few:,}: {1e3 * plain:.1f} ms",
        },
        {
            "measure": f"{many:,} registered clients: resident memory grew by",
            "value": grown,
            "unit": "MB",
            "detail": f"{model}; after {2 * rounds + 1} rounds",
        },
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="rounds a measurement (default 8)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    settle_process()  # as the engine of a run does; it serves both sides
    logging.getLogger("flwr").setLevel(logging.ERROR)
    cnn = setting(
        num_clients=100, examples=5000, shape=(1, 28, 28), backbone=LeNet, partition=IID()
    )
    mlp = setting(
        num_clients=100,
        examples=5000,
        shape=(64,),
        backbone=partial(MLP, hidden=[64], dropout=0.0),
        partition=IID(),
    )
    results = [
        against_plain_loop("100 clients, small CNN", cnn, batch=10, rounds=rounds),
        against_plain_loop(
            "100 clients, small CNN, cohort=auto", cnn, batch=10, rounds=rounds, cohort="auto"
        ),
        against_plain_loop("100 clients, MLP", mlp, batch=10, rounds=rounds),
        against_plain_loop(
            "100 clients, MLP, cohort=auto", mlp, batch=10, rounds=rounds, cohort="auto"
        ),
        no_op_round(rounds),
        start_up(),
        *registered(rounds, (64,), Flatten, "logistic regression"),
        *registered(rounds, (1, 28, 28), LeNet, "small CNN"),
    ]
    table = Table(title=f"torch {torch.__version__}, {platform.processor()}, one thread")
    for column in ("measure", "value", "detail"):
        table.add_column(column)
    for row in results:
        table.add_row(str(row["measure"]), f"{row['value']:.3g} {row['unit']}", str(row["detail"]))
    Console(width=140).print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "engine.json").write_text(json.dumps({"argv": sys.argv, "rows": results}, indent=2))


if __name__ == "__main__":
    main()
