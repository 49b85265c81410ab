"""The comparison of graph clients with a plain loop runs, and all ways end alike."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^(plain loop|one by one|auto) .*accuracy ([\d.]+), weights apart (\S+)$", re.M)


def test_without_cora_digits_are_taken_and_all_ways_end_alike(tmp_path):
    words = ["num_clients=3", "--rounds", "1", "backbone.hidden=16"]
    command = [sys.executable, str(ROOT / "benchmarks" / "graphs.py"), *words]
    environment = {**os.environ, "FEDSIM_DATA": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "instead: dataset=digits_graph" in done.stdout
    found = {way: (float(accuracy), float(gap)) for way, accuracy, gap in LINE.findall(done.stdout)}
    assert set(found) == {"plain loop", "one by one", "auto"}
    assert len({accuracy for accuracy, _ in found.values()}) == 1
    assert all(gap < 1e-4 for _, gap in found.values())
    assert "cohort=auto: [None]" in done.stdout
