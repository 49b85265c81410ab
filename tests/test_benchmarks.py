"""The comparison with other simulators runs, and its numbers are what its table says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers.py"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS.parent))
    from contestants import report

    return report


def peers(*words):
    command = [sys.executable, str(PEERS), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_fedsim_and_the_plain_loop_end_with_the_same_weights(tmp_path):
    words = ["W2", "--repeats", "1", "--rounds", "3", "--only", "plain loop,fedsim,pfl"]
    done = peers(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "pfl: left out" in done.stdout
    assert "pip install pfl" in done.stdout
    assert (tmp_path / "peers.png").stat().st_size > 0
    rows = {r["contestant"]: r for r in json.loads((tmp_path / "peers.json").read_text())["rows"]}
    assert set(rows) == {"plain loop", "fedsim"}
    for name, row in rows.items():
        assert row["gap"] < 1e-6, name
        assert 0 < row["cpu_ms"] < 1e3 * row["first_s"], name
        assert row["memory_mb"] > 100, name
    assert rows["plain loop"]["gap"] == 0.0
    assert rows["plain loop"]["ratio"] == 1.0
    assert "flwr" in rows["fedsim"]["versions"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["W9"], "no such workload: W9"),
        (["--rounds", "1"], "at least 2"),
        (["--python", "nobody=/bin/sh"], "NAME one of"),
    ],
)
def test_a_wrong_word_is_named(words, text):
    done = peers(*words)
    assert done.returncode == 2
    assert text in done.stderr


def test_rows_are_medians_of_rounds_after_the_first_and_ratios_of_one_repeat(report):
    def run(repeat, *, round_s, first_s):
        marks = [0.5, first_s, first_s + round_s, first_s + 4 * round_s, first_s + 5 * round_s]
        fixed = {"versions": {}, "memory": 2**21, "load": 1.0}
        return {"repeat": repeat, "wall": marks, "cpu": marks, **fixed}

    runs = {
        "plain loop": [run(0, round_s=1.0, first_s=9.0), run(1, round_s=2.0, first_s=7.0)],
        "other": [run(0, round_s=3.0, first_s=2.0), run(1, round_s=3.0, first_s=4.0)],
        "failed": [],
    }
    loop, other = report.rows_of("W2", runs, {"plain loop": 0.0, "other": None})
    assert loop["cpu_ms"] == 1500.0  # rounds of 1, 3 and 1 s, and of 2, 6 and 2 s
    assert loop["ratios"] == [1.0, 1.0]
    assert other["ratios"] == [1.5, 3.0]
    assert other["ratio"] == 2.25
    assert other["first_s"] == 3.0
    assert other["memory_mb"] == 2.0
    assert report.cells(other)[-1] == ""
