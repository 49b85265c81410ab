"""Whether memory stays flat: resident megabytes over a long run.

    python benchmarks/memory.py                 1,000 rounds of 10 clients, with faults
    python benchmarks/memory.py --rounds 200    fewer

Every part of a run is at work: data cut on demand, training, the gate with some updates refused,
evaluations, results on disk. Growth is the mean over the last tenth of the rounds against the mean
over the second tenth: in the first, caches fill.
"""

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from fedsim.config import compose, resolve
from fedsim.main import simulate
from fedsim.simulation import Simulation

WORDS = [
    "dataset=toy", "dataset.train_examples=400", "scenario=single", "client=sgd", "faults=rubbish",
    "num_clients=10", "training.epochs=1", "clock.evaluate_every=10", "progress=false",
]  # fmt: skip


def main() -> None:
    """Print the growth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    resident: list[float] = []
    process, notify = psutil.Process(), Simulation._notify

    def watched(self: Simulation, *args: object) -> None:
        notify(self, *args)  # type: ignore[arg-type]
        resident.append(process.memory_info().rss / 1e6)

    Simulation._notify = watched  # type: ignore[assignment,method-assign]
    node = resolve(compose([*WORDS, f"clock.rounds_per_experience={rounds}"]))
    with tempfile.TemporaryDirectory() as folder:
        simulate(node, Path(folder) / "run", started=time.perf_counter())
    gc.collect()
    tenth = max(rounds // 10, 1)
    early = statistics.mean(resident[tenth : 2 * tenth])
    late = statistics.mean(resident[-tenth:])
    print(
        f"resident memory: {early:.1f} MB in rounds {tenth} to {2 * tenth}, {late:.1f} MB in the"
        f" last {tenth} of {rounds}: {100 * (late / early - 1):+.2f} %"
    )


if __name__ == "__main__":
    main()
