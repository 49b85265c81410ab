"""What an encoder learns from fractals, and what it is worth on real pictures.

    python benchmarks/fractal.py encoder=fractal_grey dataset=mnist --seeds 3
    python benchmarks/fractal.py encoder=fractal_instances --task

The first form compares the nearest class mean on a frozen fractal encoder with the same network
with random weights. Seeds are those of the encoder: its weights, and its fractals. The random
network is the same configuration after no training, and both are in evaluation mode. A seed whose
encoder is not in the cache is trained first.

The second trains from the start, whatever the cache holds, and tells how well the network does on
other pictures of the same systems: accuracy, or mean average precision against that of a random
order.
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch

from fedsim.build import make
from fedsim.config import compose, resolve
from fedsim.data import Dataset
from fedsim.pretrain import held_out, pretrain, untrained


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


def task(overrides: list[str]) -> dict[str, float]:
    """Train one encoder on its fractals and test it on others of the same systems."""
    parts = make(resolve(compose(overrides)), "encoder").keywords
    data = partial(parts["data"], seed=parts["seed"], device=parts["device"])
    train, begun = data(split="train"), time.perf_counter()
    model = untrained(parts["backbone"], train, parts["seed"]).to(parts["device"])
    measures = pretrain(model, train, parts["training"], parts["seed"], parts.get("warmup", 0))
    return {
        **measures,
        **held_out(model, data(split="test")),
        "minutes": (time.perf_counter() - begun) / 60,
    }


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", action="store_true", help="train and test on fractals")
    options, overrides = parser.parse_known_args()
    if options.task:
        torch.set_num_threads(1)
        for name, value in task(overrides).items():
            print(f"{name.replace('_', ' ')}: {value:.4g}")
        return
    trained, random = [], []
    for seed in range(options.seeds):
        words = [*overrides, f"encoder.seed={seed}"]
        trained.append(measure(words))
        random.append(measure([*words, "encoder.training.epochs=0"]))
        print(f"seed {seed}: fractal {trained[-1]:.4f}, random {random[-1]:.4f}", flush=True)
    ours, theirs = statistics.fmean(trained), statistics.fmean(random)
    print(f"mean: fractal {ours:.4f}, random {theirs:.4f}, {100 * (ours - theirs):+.1f} points")


if __name__ == "__main__":
    main()
