"""Nearest class mean on a frozen fractal encoder, against the same network with random weights.

    python benchmarks/fractal.py encoder=fractal_grey dataset=mnist --seeds 3

Seeds are those of the encoder: its weights, and its fractals. The random network is the same
configuration after no training, and both are in evaluation mode. A seed whose encoder is not in the
cache is trained first.
"""

import argparse
import statistics

import numpy as np
import torch

from fedsim.build import make
from fedsim.config import compose, resolve
from fedsim.data import Dataset


def nearest_class_mean(data: Dataset) -> float:
    """Accuracy on the test part of the training part's class means."""
    train, test = (part.take(np.arange(len(part.targets))) for part in (data.train, data.test))
    means = torch.stack(
        [train[data.train.targets == c].mean(dim=0) for c in range(data.num_classes)]
    )
    found = torch.cdist(test, means).argmin(dim=1)
    return float((found == data.test.targets).float().mean())


def measure(overrides: list[str]) -> float:
    """Score of one encoder."""
    return nearest_class_mean(make(resolve(compose(overrides)), "dataset"))


def main() -> None:
    """Measure each seed with and without training and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options, overrides = parser.parse_known_args()
    trained, untrained = [], []
    for seed in range(options.seeds):
        words = [*overrides, f"encoder.seed={seed}"]
        trained.append(measure(words))
        untrained.append(measure([*words, "encoder.training.epochs=0"]))
        print(f"seed {seed}: fractal {trained[-1]:.4f}, random {untrained[-1]:.4f}", flush=True)
    fractal, random = statistics.fmean(trained), statistics.fmean(untrained)
    print(
        f"mean: fractal {fractal:.4f}, random {random:.4f}, {100 * (fractal - random):+.1f} points"
    )


if __name__ == "__main__":
    main()
