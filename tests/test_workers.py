"""Experiments give the same bits with any number of worker processes."""

import json

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

SMALL = ["progress=false", "training.epochs=1"]
RUNS = {
    "fedavg": ["dataset=toy", "dataset.train_examples=240", "num_clients=5"],
    "fedpub": ["experiment=fedpub_cora_disjoint_5", "dataset=digits_graph", "num_clients=4"],
    "prototypes": ["experiment=fedrecon_digits", "scenario.num_experiences=3"],
    "dkvb": [
        "experiment=dkvb_digits", "num_clients=3", "clock.rounds_per_experience=[4,1,1,1,1]",
        "strategy.keys.rounds=2",
    ],
    "avalanche": [
        "dataset=toy", "dataset.train_examples=240", "num_clients=3", "client=avalanche_replay",
        "scenario=class_incremental", "scenario.num_experiences=2",
    ],
}  # fmt: skip
ROUNDS = {"fedavg": 2, "fedpub": 3, "avalanche": 2}


@pytest.mark.parametrize("name", RUNS)
def test_one_two_and_four_workers_give_the_same_run(tmp_path, name):
    overrides = [*SMALL, *RUNS[name]]
    if name in ROUNDS:
        overrides.append(f"clock.rounds_per_experience={ROUNDS[name]}")

    def run(workers):
        folder = tmp_path / str(workers)
        node = resolve(compose([*overrides, f"engine.workers={workers}"]))
        summary = simulate(node, folder, started=0.0)
        assert summary["rounds"] >= 2
        rows = (folder / "rows.jsonl").read_text()
        assert len(rows.splitlines()) > 1
        rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        return summary["digest"], rows, [row["train_loss"] for row in rounds]

    alone = run(1)
    assert run(2) == alone
    assert run(4) == alone
