"""What the size to which EfficientNet-Lite0 gets its images is worth, on a part of CIFAR-10.

    python benchmarks/input_size.py --sizes 32 64 96 128

Images of training and test data, spread evenly, are encoded at every size. Then three models learn
from the features: the key-value bottleneck two classes at a time, a linear probe on all data at
once, and the class means. A part of the data is enough to compare sizes; the accuracies of the
whole data set are higher.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch

import fedsim
from fedsim.build import make
from fedsim.config import compose, resolve
from fedsim.data import Dataset, Examples, TensorExamples
from scenarios.datasets import cifar10

BASE = ["experiment=dkvb_cifar10", "dataset._target_=input_size.part", "training.batch_size=32"]
BOTTLENECK = ["head=keyvalue_small", "training.epochs=20"]
PROBE = ["client=probe", "strategy=fedavg", "head=linear", "training.epochs=20"]
AT_ONCE = ["scenario=single", "clock.rounds_per_experience=1"]


def part(*, root: str, download: bool, train: int, test: int) -> Dataset:
    """Some images of CIFAR-10, spread evenly over its files, which may be sorted by class.

    Args:
        root: Data folder.
        download: Let torchvision fetch the data where it is missing.
        train: Training images to keep.
        test: Test images to keep.
    """
    whole = cifar10(root=root, download=download)

    def some(examples: Examples, count: int) -> TensorExamples:
        examples = in_memory(examples)
        chosen = torch.arange(count) * len(examples.targets) // count
        return dataclasses.replace(
            examples, inputs=examples.inputs[chosen], targets=examples.targets[chosen]
        )

    return dataclasses.replace(whole, train=some(whole.train, train), test=some(whole.test, test))


def in_memory(examples: Examples) -> TensorExamples:
    """The examples, which must be tensors.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(examples, TensorExamples):
        raise TypeError(f"expected examples in memory, got {type(examples).__name__}")
    return examples


def nearest_class_mean(data: Dataset) -> float:
    """Accuracy of the class means of the training features on the test features."""
    train, test = in_memory(data.train).inputs, in_memory(data.test).inputs
    means = torch.stack(
        [train[data.train.targets == c].mean(dim=0) for c in range(data.num_classes)]
    )
    found = torch.cdist(test, means).argmin(dim=1)
    return float((found == data.test.targets).float().mean())


def measure(words: list[str]) -> dict[str, float]:
    """Accuracies at one size, and what it takes to encode an image there."""
    node, clock = resolve(compose(words)), [time.process_time()]
    for _ in range(2):  # encoded, then read from the cache
        data = make(node, "dataset")
        clock.append(time.process_time())
    spent = clock[1] - clock[0] - (clock[2] - clock[1])
    images = len(data.train.targets) + len(data.test.targets)
    with tempfile.TemporaryDirectory() as folder:
        sequence = fedsim.run([*words, *BOTTLENECK], folder=Path(folder) / "sequence")
        probe = fedsim.run([*words, *PROBE, *AT_ONCE], folder=Path(folder) / "probe")
        return {
            "encoding_ms": 1000 * spent / images,
            "nearest_class_mean": nearest_class_mean(data),
            "linear_probe_at_once": probe.summary["test_accuracy"],
            "bottleneck_in_sequence": sequence.summary["test_accuracy"],
        }


def main() -> None:
    """Measure every size and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96, 128])
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = [f"+dataset.train={options.train}", f"+dataset.test={options.test}"]
    for size in options.sizes:
        found = measure([*BASE, *counts, f"encoder.resize={size}"])
        print(json.dumps({"size": size} | {k: round(v, 3) for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
