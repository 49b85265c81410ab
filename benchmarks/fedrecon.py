"""A mission round of many clients on cached embeddings, against the sums alone.

    python benchmarks/fedrecon.py --clients 1000 --classes 5 --shots 15 --features 64

The floor does what no implementation can leave out: for every client, the sums of the embeddings
of its classes in NumPy, and the arrays of its message written to and read from ``.npy`` bytes, as
Flower's messages hold them. The round is fedsim's whole round: configure, messages, clients,
checks, aggregation. Both run in one process on one thread, in CPU seconds; the best of the
repetitions counts.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from flwr.app import Array

from clients.prototypes import Prototypes as Client
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting, initial_model
from fedsim.clock import MilestoneClock
from fedsim.engine import settle_process
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.training import LocalTraining
from scenarios.missions import Mission, Missions
from scenarios.toy import toy
from strategies.prototypes import Prototypes

CLASSES = 600


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--shots", type=int, default=15)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settle_process()  # as every run of the engine does
    scenario = Missions(
        dataset=toy(
            num_classes=CLASSES,
            shape=[args.features],
            train_examples=CLASSES * args.shots,
            test_examples=CLASSES,
        ),
        num_clients=args.clients,
        num_experiences=args.repeat + 2,
        mission=Mission(classes=args.classes, shots=args.shots, replacement=True),
        seed=0,
    )
    floor = [best_of(partial(direct, scenario, mission)) for mission in range(args.repeat)]
    rounds, deviation = simulated(scenario)
    report = {
        "clients": args.clients,
        "direct_s": round(min(floor), 4),
        "round_s": round(min(rounds), 4),
        "ratio": round(min(rounds) / min(floor), 3),
        "largest_deviation": deviation,
    }
    print(json.dumps(report))


def direct(scenario: Missions, mission: int) -> None:
    """Sums of every client's classes, and its message's bytes."""
    embeddings = scenario.dataset.train.inputs.numpy()
    targets = scenario.targets("train").numpy()
    for client in range(scenario.num_clients):
        rows = scenario.indices(client, mission, "train")
        own, labels = embeddings[rows], targets[rows]
        classes = np.unique(labels)
        sums = np.stack([own[labels == c].sum(0) for c in classes])
        counts = np.array([(labels == c).sum() for c in classes])
        for values in (classes, sums, counts):
            np.load(io.BytesIO(Array.from_numpy_ndarray(values).data), allow_pickle=False)


def simulated(scenario: Missions) -> tuple[list[float], float]:
    """Seconds of the rounds between first and last, and the table's largest deviation."""
    setting = Setting(
        scenario=scenario,
        clock=MilestoneClock(  # rounds are timed, evaluations are not
            num_experiences=scenario.num_experiences, rounds_per_experience=1, milestones=[]
        ),
        model=lambda: Model(Flatten(input_shape=scenario.input_shape), scenario.num_classes),
        seed=0,
    )
    training = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1))
    client = Client(setting, training=training)
    strategy = Prototypes(
        sampler=Uniform(seed=0), evaluation_sampler=Uniform(seed=0, count=1, fixed=True)
    )
    grid = LocalGrid(client_app_of(lambda _: client), scenario.num_clients, raise_errors=True)
    loop = Loop(
        strategy=strategy, grid=grid, roster=grid.roster, clock=setting.clock, seed=setting.seed
    )
    arrays = to_record(dict(initial_model(setting).state_dict()))
    seconds = []
    start = time.process_time()
    for log, _ in loop.run(arrays):
        if 1 < log.tick.round < scenario.num_experiences:  # no table before, an evaluation after
            seconds.append(time.process_time() - start)
        start = time.process_time()
    return seconds, deviation_of(scenario, strategy)


def deviation_of(scenario: Missions, strategy: Prototypes) -> float:
    """Largest absolute difference between the table and the pooled class means."""
    state = strategy.ready(to_record({}))
    parts = [
        scenario.indices(client, mission, "train")
        for mission in range(scenario.num_experiences)
        for client in range(scenario.num_clients)
    ]
    rows = np.concatenate(parts)
    inputs, targets = scenario.dataset.train.inputs.double(), scenario.targets("train")
    sums = torch.zeros(scenario.num_classes, inputs.shape[1], dtype=torch.float64)
    sums.index_add_(0, targets[rows], inputs[rows])
    counts = torch.bincount(targets[rows], minlength=scenario.num_classes)
    means = sums[state.classes] / counts[state.classes].unsqueeze(1)
    return float((state.sums / state.counts.unsqueeze(1) - means).abs().max())


def best_of(work: Callable[[], None], times: int = 2) -> float:
    """Shortest CPU time in seconds."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
