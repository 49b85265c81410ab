"""The two-dimensional figure: eight blobs, two at a time (method sheet, check 3)."""

import time

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

ONE_CODEBOOK = [
    "head.lookup.codebooks=1",
    "head.lookup.pairs=400",
    "head.lookup.projection=chunk",
]
PROBE = ["client=probe", "strategy=fedavg"]


def accuracy(folder, *overrides):
    node = resolve(compose(["experiment=dkvb_toy", "progress=false", *overrides]))
    return simulate(node, folder, started=time.perf_counter())["test_accuracy"]


@pytest.mark.parametrize("variant", [[], ONE_CODEBOOK], ids=["20 codebooks", "1 codebook"])
def test_the_bottleneck_separates_all_eight_classes(tmp_path, variant):
    assert accuracy(tmp_path, *variant) >= 0.95


@pytest.mark.parametrize("head", [["head=linear"], ["head=mlp", "head.hidden=32"]])
def test_a_probe_knows_the_last_pair_at_most(tmp_path, head):
    assert accuracy(tmp_path, *PROBE, *head) <= 0.5
