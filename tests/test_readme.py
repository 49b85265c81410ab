"""The README's example works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCK = r"`([\w/]+\.(?:py|yaml))`[^`]*:\n\n```\w+\n(.*?)```"
FILES = dict(re.findall(BLOCK, README, re.S))
SMALL = ["dataset=toy", "num_clients=4", "clock.rounds_per_experience=1", "training.epochs=1"]


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_example_files_are_found():
    assert set(FILES) == {
        "smooth.py", "conf/client/smooth.yaml", "even.py", "conf/strategy/even.yaml", "test_even.py"
    }  # fmt: skip


def test_the_example_runs_from_a_folder_of_ones_own(folder):
    (command,) = re.findall(r"^fedsim (--config-dir .*)$", README, re.M)
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.main", *command.split(), *SMALL, "hydra.run.dir=run"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "summary.json").exists()
    assert "smoothing: 0.2" in (folder / "run" / "config.yaml").read_text()


def test_the_examples_test_passes(folder):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_even.py"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout
