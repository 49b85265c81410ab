import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from fedsim.arrays import to_record
from fedsim.clock import Clock
from fedsim.gate import Rejection
from fedsim.judging import accuracy_of, rows_of, summarise
from fedsim.loop import BEFORE, RoundLog
from fedsim.results import Results, RunExistsError, digest
from fedsim.wire import Upload

CLOCK = Clock(num_experiences=2, rounds_per_experience=1)
ARRAYS = to_record({"w": torch.ones(2)})


def evaluation(client, accuracy, examples=(10, 30)):
    return Upload(
        client_id=client,
        num_examples=sum(examples),
        records={},
        metrics={"accuracy": list(accuracy), "loss": [1.0, 2.0], "examples": list(examples)},
    )


def logs():
    before = RoundLog(BEFORE, server=evaluation(-1, (0.1, 0.2)))
    first = RoundLog(CLOCK.at(1), cohort=[0, 1], num_examples=5, train_loss=1.5)
    first.upload_bytes = {"arrays": 8}
    first.download_bytes = {"arrays": 16}
    first.seconds = {"train": 0.5}
    first.server = evaluation(-1, (0.9, 0.3))
    first.evaluations = [evaluation(0, (0.8, 0.0)), evaluation(1, (1.0, 0.0))]
    second = RoundLog(CLOCK.at(2), cohort=[1])
    second.upload_bytes = {"arrays": 4, "mask": 1}
    second.seconds = {"train": 0.25}
    second.rejections = [Rejection(round=2, client=0, kind="not_finite", reason="NaN")]
    second.server = evaluation(-1, (0.5, 0.7))
    second.evaluations = [
        evaluation(0, (0.4, 0.6)),
        evaluation(1, (0.6, math.nan), examples=(10, 0)),
    ]
    return [before, first, second]


def written(tmp_path, personal=False):
    results = Results(tmp_path, personal=personal)
    for log in logs():
        results.record(log, 1.0)
    return results.finish(ARRAYS, {"num_clients": 2})


def test_the_summary_by_hand(tmp_path):
    summary = written(tmp_path)
    assert summary["model"] == "global"
    assert summary["test_accuracy"] == pytest.approx((0.5 * 10 + 0.7 * 30) / 40)
    assert summary["average_accuracy"] == pytest.approx(0.6)
    assert summary["forgetting"] == pytest.approx(0.4)
    assert summary["backward_transfer"] == pytest.approx(-0.4)
    assert summary["forward_transfer"] == pytest.approx(
        0.1
    )  # 0.3 before learning it, 0.2 untrained
    assert summary["average_incremental_accuracy"] == pytest.approx((0.9 + 0.6) / 2)
    assert summary["worst_decile_accuracy"] == pytest.approx((0.4 * 10 + 0.6 * 30) / 40)
    assert summary["upload_bytes"] == 13
    assert summary["upload_bytes/arrays"] == 12
    assert summary["upload_bytes/mask"] == 1
    assert summary["download_bytes"] == 16
    assert summary["seconds/train"] == 0.75
    assert summary["rejected_updates"] == summary["rejected/not_finite"] == 1
    assert summary["rounds"] == 2
    assert summary["digest"] == digest(ARRAYS)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert all(not isinstance(v, dict | list) for v in summary.values())


def test_personal_models_are_judged_by_the_clients(tmp_path):
    summary = written(tmp_path, personal=True)
    assert summary["model"] == "personal"
    assert summary["test_accuracy"] == pytest.approx((0.4 * 10 + 0.6 * 30 + 0.6 * 10) / 50)


def test_the_files_hold_what_was_recorded(tmp_path):
    written(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert len(rows) == 2 + 6 + 5  # no row without test examples
    assert rows[0] == {
        "round": 0, "experience": -1, "client": None, "model": "global",
        "eval_experience": 0, "accuracy": 0.1, "loss": 1.0, "num_examples": 10,
    }  # fmt: skip
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").open()]
    assert [r["cohort"] for r in rounds] == [[0, 1], [1]]
    assert rounds[1]["train_loss"] is None  # NaN is not JSON
    rejected = [json.loads(line) for line in (tmp_path / "rejections.jsonl").open()]
    assert rejected == [{"round": 2, "client": 0, "kind": "not_finite", "reason": "NaN"}]


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path):
    written(tmp_path)
    with pytest.raises(RunExistsError, match="overwrite=true"):
        Results(tmp_path, personal=False)
    Results(tmp_path, personal=False, overwrite=True).close()
    assert not (tmp_path / "summary.json").exists()


def test_rows_are_on_disk_after_every_round(tmp_path):
    results = Results(tmp_path, personal=False)
    results.record(logs()[1], 1.0)
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 1


def test_without_any_evaluation_the_figures_are_null():
    summary = summarise([], personal=False)
    assert summary["test_accuracy"] is None
    assert summary["worst_decile_accuracy"] is None


def test_accuracy_of_a_round():
    log = logs()[2]
    assert accuracy_of(log, personal=False) == pytest.approx(0.65)
    assert accuracy_of(log, personal=True) == pytest.approx(0.56)
    assert math.isnan(accuracy_of(RoundLog(CLOCK.at(1)), personal=False))


def test_the_digest_sees_names_types_shapes_and_values():
    base = {"a": torch.zeros(2), "b": torch.ones(2)}
    digests = {
        digest(to_record(base)),
        digest(to_record({"a": torch.ones(2), "b": torch.zeros(2)})),
        digest(to_record({**base, "a": torch.zeros(1, 2)})),
        digest(to_record({**base, "a": torch.zeros(2, dtype=torch.float64)})),
        digest(to_record({"a": torch.zeros(2), "c": torch.ones(2)})),
    }
    assert len(digests) == 5
    assert digest(to_record(dict(reversed(base.items())))) == digest(to_record(base))


def test_server_rows_come_first_then_clients_in_order():
    rows = rows_of(logs()[1], personal=False)
    assert [row["client"] for row in rows] == [None, None, 0, 0, 1, 1]
