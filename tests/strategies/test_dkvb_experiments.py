"""The named experiments that need larger data, two rounds of each on a toy."""

import time

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

TOY = [
    "dataset=toy",
    "dataset.shape=[3,8,8]",
    "encoder=identity",
    "head=keyvalue_small",
    "head.lookup.pairs=64",
    "progress=false",
    "strategy.keys.rounds=1",
    "clock.rounds_per_experience=[3,2]",
    "scenario.num_experiences=2",
]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dkvb_cifar10", []),
        ("dkvb_cifar10_federated", ["clock.max_shift=1"]),
        ("dkvb_omniglot", ["dataset.num_groups=10", "dataset.provides=[images,groups]"]),
    ],
)
def test_the_experiment_runs_and_learns_the_toy(tmp_path, name, more):
    node = resolve(compose([f"experiment={name}", *TOY, *more]))
    summary = simulate(node, tmp_path, started=time.perf_counter())
    assert summary["rejected_updates"] == 0
    assert summary["test_accuracy"] >= 0.5  # ten classes
    assert summary["upload_bytes"] > 0
