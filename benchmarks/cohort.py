"""Rounds of many clients at once, against a plain PyTorch loop over the same clients, in one run.

    python benchmarks/cohort.py                    all; a table, results/cohort.json and cohort.png
    python benchmarks/cohort.py W2 --rounds 20     one of them, more rounds
    python benchmarks/cohort.py W2 --ray           also Flower's own engine (extra `ray`)

W1: 100 clients, all a round, 50 images each, small CNN (29,066 parameters), batches of 10.
W2: 50 clients, all a round, 36 vectors each, logistic regression, batches of 32 (32 and 4).
W3: 10,000 registered clients, 100 a round, 20 vectors each, logistic regression.
W4: 20 clients, 128 images each, a CNN too large to gain from company, batches of 64.

The plain loop is what one writes by hand: one model and one `torch.optim.SGD` for all clients, data
in memory, weighted mean at the end. `torch.func` is bare `vmap` of gradients for all clients of a
round. `fedsim` is Flower's FedAvg over `LocalGrid` with `engine.cohort=auto`, with every check and
message of a real run; `one by one` is `cohort=off`. All take turns, round by round, so that they
see the same machine; figures are medians over rounds of CPU seconds of one thread, and ratios are
of the rounds of one turn.
"""

import argparse
import gc
import itertools
import json
import logging
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import flwr
import torch
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params, to_record
from fedsim.backbones.vision import Flatten, LeNet
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.cohort_plan import CohortSize
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.seeding import generator
from fedsim.training import LocalTraining
from scenarios.order import SameOrder
from scenarios.partition import IID, Resampled
from scenarios.single import Single
from scenarios.toy import toy

LR, SEED = 0.05, 0
OUT = Path(__file__).parent / "results"
PEERS = ("pfl", "fluke-fl", "fedlab")
RAY_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One of the workloads above."""

    clients: int
    cohort: int
    samples: int
    batch: int
    shape: tuple[int, ...]
    backbone: type[torch.nn.Module]
    rounds: int


WORKLOADS = {
    "W1": Workload(
        clients=100, cohort=100, samples=50, batch=10, shape=(1, 28, 28), backbone=LeNet, rounds=5
    ),
    "W2": Workload(
        clients=50, cohort=50, samples=36, batch=32, shape=(64,), backbone=Flatten, rounds=15
    ),
    "W3": Workload(
        clients=10_000, cohort=100, samples=20, batch=32, shape=(64,), backbone=Flatten, rounds=15
    ),
    "W4": Workload(
        clients=20, cohort=20, samples=128, batch=64, shape=(3, 32, 32), backbone=LeNet, rounds=4
    ),
}


def setting(work: Workload) -> Setting:
    """The workload on toy data."""
    everyone = work.clients == work.cohort
    examples = work.clients * work.samples if everyone else 2000
    partition = (
        IID() if everyone else Resampled(samples_per_client=work.samples, test_samples_per_client=1)
    )
    scenario = Single(
        dataset=toy(shape=work.shape, train_examples=examples, test_examples=10),
        partition=partition,
        order=SameOrder(),
        num_clients=work.clients,
        seed=SEED,
    )
    return Setting(
        scenario=scenario,
        clock=Clock(num_experiences=1, rounds_per_experience=10_000),
        model=lambda: Model(work.backbone(input_shape=work.shape), 10),
        seed=SEED,
    )


def fedsim_rounds(
    common: Setting, work: Workload, cohort: CohortSize, workers: int = 1
) -> Iterator[list[Tensor]]:
    """Rounds of the engine, one at each ``next``."""
    optimizer = partial(torch.optim.SGD, lr=LR)
    client = SGD(common, training=LocalTraining(optimizer=optimizer, batch_size=work.batch))
    app = client_app_of(lambda _: client)
    grid = LocalGrid(app, work.clients, raise_errors=True, cohort=cohort, workers=workers)
    share = work.cohort / work.clients
    strategy = FedAvg(share, 0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1)
    loop = Loop(strategy=strategy, grid=grid, roster=grid.roster, clock=common.clock, seed=SEED)
    rounds = loop.run(to_record(dict(initial_model(common).state_dict())))
    next(rounds)  # the untrained model
    for log, arrays in rounds:
        assert len(log.cohort) == work.cohort
        yield list(to_params(arrays).values())


def plain_rounds(common: Setting, work: Workload) -> Iterator[list[Tensor]]:
    """The same rounds as a loop over clients with one reused model, all data in memory."""
    model = initial_model(common)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR)
    shards = [common.scenario.shard(c, 0, "train") for c in range(work.clients)]
    data = [(shard.inputs, shard.targets) for shard in shards]
    whole = [p.detach().clone() for p in params]
    draw = random.Random(SEED)
    for round_ in range(1, 10_000):
        total = [torch.zeros_like(w) for w in whole]
        count = 0
        for client in sorted(draw.sample(range(work.clients), work.cohort)):
            with torch.no_grad():
                for p, w in zip(params, whole, strict=True):
                    p.copy_(w)
            inputs, targets = data[client]
            rng = generator(SEED, "train", round_, client)
            order = torch.randperm(len(targets), generator=rng)
            x, y = inputs[order], targets[order]
            for i in range(0, len(y), work.batch):
                optimizer.zero_grad()
                cross_entropy(model(x[i : i + work.batch]), y[i : i + work.batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for t, p in zip(total, params, strict=True):
                    t.add_(p, alpha=len(y))
            count += len(y)
        whole = [t / count for t in total]
        yield whole


def func_rounds(common: Setting, work: Workload) -> Iterator[list[Tensor]]:
    """All clients of a round at once with `torch.func`, and nothing else: all data in memory."""
    model = initial_model(common)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    shards = [common.scenario.shard(c, 0, "train") for c in range(work.clients)]
    inputs = torch.stack([shard.inputs for shard in shards])
    targets = torch.stack([shard.targets for shard in shards])
    draw = random.Random(SEED)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x,)), y)

    gradients = vmap(grad(loss))
    for round_ in range(1, 10_000):
        chosen = sorted(draw.sample(range(work.clients), work.cohort))
        rngs = [generator(SEED, "train", round_, client) for client in chosen]
        order = torch.stack([torch.randperm(work.samples, generator=rng) for rng in rngs])
        rows = torch.tensor(chosen).unsqueeze(1)
        weights = {n: w.expand(work.cohort, *w.shape).clone() for n, w in whole.items()}
        for part in torch.split(order, work.batch, dim=1):
            found = gradients(weights, inputs[rows, part], targets[rows, part])
            for name, weight in weights.items():
                weight.sub_(found[name], alpha=LR)
        whole = {name: weight.mean(0) for name, weight in weights.items()}
        yield list(whole.values())


def seconds(step: Callable[[], object]) -> float:
    """CPU seconds of one call; all of it is one thread of this process."""
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(name: str, work: Workload, rounds: int) -> list[dict[str, object]]:
    """Median seconds a round of each way, and ratios to the plain loop."""
    common = setting(work)
    ways: dict[str, Iterator[list[Tensor]]] = {
        "plain loop": plain_rounds(common, work),
        "torch.func": func_rounds(common, work),
        "fedsim": fedsim_rounds(common, work, "auto"),
        "fedsim, one by one": fedsim_rounds(setting(work), work, "off"),
    }
    last: dict[str, list[Tensor]] = {}
    times: dict[str, list[float]] = {way: [] for way in ways}
    gc.collect()
    gc.freeze()  # as LocalEngine does; the plain loop gains as well
    for turn in range(rounds + 2):
        for way, rounds_of in ways.items():

            def step(way: str = way, rounds_of: Iterator[list[Tensor]] = rounds_of) -> None:
                last[way] = next(rounds_of)

            spent = seconds(step)
            if turn >= 2:  # the first rounds load code and fill caches
                times[way].append(spent)
    rows = []
    for way, spent in times.items():
        ratios = [a / b for a, b in zip(spent, times["plain loop"], strict=True)]
        pairs = zip(last[way], last["plain loop"], strict=True)
        gap = max(float((a - b).abs().max()) for a, b in pairs)
        rows.append(
            {
                "workload": name,
                "way": way,
                "ms a round": 1e3 * statistics.median(spent),
                "ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
                "weight gap": gap if work.clients == work.cohort else None,
                "clock": "CPU",
            }
        )
    return rows


def flower_on_ray(name: str, work: Workload) -> dict[str, object]:
    """Flower's own engine with the same client, wall seconds after its first round."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    common = setting(work)
    optimizer = partial(torch.optim.SGD, lr=LR)
    training = LocalTraining(optimizer=optimizer, batch_size=work.batch)
    marks: list[float] = []

    class Timed(FedAvg):
        def configure_train(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN003, ANN202
            marks.append(time.perf_counter())
            return super().configure_train(*args, **kwargs)

    server = ServerApp()

    @server.main()
    def main(grid, _context) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        share = work.cohort / work.clients
        strategy = Timed(share, 0.0, min_evaluate_nodes=0, min_available_nodes=work.clients)
        start = to_record(dict(initial_model(common).state_dict()))
        strategy.start(grid, start, num_rounds=RAY_ROUNDS + 1)
        marks.append(time.perf_counter())

    app = client_app_of(lambda _: SGD(common, training=training))
    backend = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"address": "local", "include_dashboard": False},
    }
    run_simulation(server, app, work.clients, backend_config=backend)  # type: ignore[arg-type]
    spent = statistics.median(b - a for a, b in itertools.pairwise(marks[1:]))
    return {"workload": name, "way": "Flower on Ray", "ms a round": 1e3 * spent, "clock": "wall"}


def versions() -> dict[str, str]:
    """What was measured, and which peers are installed beside it."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("flwr", *PEERS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title=f"torch {torch.__version__}, flwr {flwr.__version__}, one thread")
    for column in ("workload", "way", "ms a round", "of the plain loop", "weights apart"):
        table.add_column(column)
    for row in rows:
        ratio = "" if "ratio" not in row else f"{row['ratio']:.3f} x"
        if "ratios" in row:
            low, high = row["ratios"]  # type: ignore[misc]
            ratio += f" ({low:.3f} to {high:.3f})"
        gap = row.get("weight gap")
        apart = "" if gap is None else f"{gap:.0e}"
        table.add_row(
            str(row["workload"]), str(row["way"]), f"{row['ms a round']:.2f}", ratio, apart
        )
    Console(width=120).print(table)


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Ratios to the plain loop, by workload."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if "ratio" in row and row["way"] != "plain loop"]
    figure = Figure(figsize=(7, 0.5 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['workload']}, {row['way']}" for row in shown]
    axes.barh(names, [float(str(row["ratio"])) for row in shown])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of a round, of a plain PyTorch loop's")
    figure.savefig(path)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="W1 W2 W3")
    parser.add_argument("--rounds", type=int, help="rounds that are measured")
    parser.add_argument("--ray", action="store_true", help="also Flower's own engine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    for name in options.workloads:
        work = WORKLOADS[name]
        rows += compare(name, work, options.rounds or work.rounds)
        if options.ray:
            rows.append(flower_on_ray(name, work))
    show(rows)
    OUT.mkdir(exist_ok=True)
    content = {"argv": sys.argv, "versions": versions(), "rows": rows}
    (OUT / "cohort.json").write_text(json.dumps(content, indent=2))
    plot(rows, OUT / "cohort.png")


if __name__ == "__main__":
    main()
