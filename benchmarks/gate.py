"""What the update gate takes of a round: CPU seconds in the gate over CPU seconds of the round.

    python benchmarks/gate.py              100 clients, small CNN, as in benchmarks/engine.py
    python benchmarks/gate.py --rounds 4   fewer rounds

Time in the gate is measured inside the very rounds it is compared with, so the machine's other work
cancels out; the figure is the median over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from engine import fedsim_rounds, setting

from fedsim import intake, screen
from fedsim.backbones.vision import LeNet
from scenarios.partition import IID


class Stopwatch:
    """Adds up the CPU time spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - start

        return timed


def shares(rounds: int) -> list[float]:
    """The gate's share of every round, the first ones left out."""
    watch = Stopwatch()
    for name in ("read", "admit"):
        setattr(screen.Screen, name, watch.around(getattr(screen.Screen, name)))
    intake.outvoted = watch.around(intake.outvoted)
    common = setting(
        num_clients=100, examples=5000, shape=(1, 28, 28), backbone=LeNet, partition=IID()
    )
    steps = fedsim_rounds(common, fraction=1.0, batch=10)
    found = []
    for round_ in range(rounds + 2):
        watch.seconds, start = 0.0, time.process_time()
        next(steps)
        if round_ >= 2:
            found.append(watch.seconds / (time.process_time() - start))
    return found


def main() -> None:
    """Print the median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    torch.set_num_threads(1)
    found = shares(parser.parse_args().rounds)
    print(
        f"gate: {100 * statistics.median(found):.2f} % of a round"
        f" (min {100 * min(found):.2f}, max {100 * max(found):.2f}, {len(found)} rounds)"
    )


if __name__ == "__main__":
    main()
