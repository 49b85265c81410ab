"""Forgetting one class by masking pairs, through the whole simulator."""

import json
import time

from fedsim.config import compose, resolve
from fedsim.main import simulate


def test_the_class_is_gone_and_the_others_stay(tmp_path):
    node = resolve(compose(["experiment=dkvb_unlearning", "progress=false"]))
    simulate(node, tmp_path / "run", started=time.perf_counter())
    rows = [
        row
        for row in _rows(tmp_path / "run")
        if row["client"] is None and row["round"] == 21  # the last: 10 of keys, 10 of digits, this
    ]
    accuracy = {row["eval_experience"]: row["accuracy"] for row in rows}
    kept = [value for digit, value in accuracy.items() if digit != 3]
    assert accuracy[3] <= 0.05
    assert len(kept) == 9
    assert sum(kept) / 9 >= 0.95


def _rows(folder):
    with (folder / "rows.jsonl").open() as file:
        return [json.loads(line) for line in file]
