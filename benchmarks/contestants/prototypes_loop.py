"""Missions without a framework: every client's class sums in NumPy, added to one table.

Which examples a client meets is told by the scenario of fedsim, as in ``benchmarks/fedrecon.py``;
``--messages`` also writes every client's arrays as ``.npy`` bytes and reads them, which is the
floor of that benchmark.
"""

import io
import sys

import numpy as np
from flwr.app import Array
from workloads import SEED, num_rounds

from contestants.stopwatch import Stopwatch
from scenarios.missions import Mission, Missions
from scenarios.toy import toy

CLASSES, FEATURES, CLIENTS, SHOTS = 600, 64, 1000, 15


def sent(values: np.ndarray) -> np.ndarray:
    """The array as it comes out of a message."""
    data = io.BytesIO(Array.from_numpy_ndarray(values).data)
    return np.asarray(np.load(data, allow_pickle=False))


def main() -> None:
    watch = Stopwatch()
    scenario = Missions(
        dataset=toy(
            num_classes=CLASSES,
            shape=[FEATURES],
            train_examples=CLASSES * SHOTS,
            test_examples=CLASSES,
            seed=SEED,
        ),
        num_clients=CLIENTS,
        num_experiences=num_rounds(),
        mission=Mission(classes=5, shots=SHOTS, replacement=True),
        seed=SEED,
    )
    embeddings = scenario.dataset.train.take(np.arange(CLASSES * SHOTS)).numpy()
    targets = scenario.targets("train").numpy()
    sums, counts = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES)
    watch.mark()
    for mission in range(num_rounds()):
        for client in range(CLIENTS):
            rows = scenario.indices(client, mission, "train")
            own, labels = embeddings[rows], targets[rows]
            classes = np.unique(labels)
            found = [classes, np.stack([own[labels == c].sum(0) for c in classes])]
            found.append(np.array([(labels == c).sum() for c in classes]))
            if "--messages" in sys.argv:
                found = [sent(values) for values in found]
            sums[found[0]] += found[1]
            counts[found[0]] += found[2]
        watch.mark()
    means = sums / np.maximum(counts, 1)[:, None]
    watch.report(["numpy", "fedsim-lab"], means.ravel())


if __name__ == "__main__":
    main()
