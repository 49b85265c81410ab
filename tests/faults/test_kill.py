"""A run that is killed outright, again and again, ends like one that was left alone.

Three kills by default; FEDSIM_KILLS=20 asks for more.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback

import pytest

from fedsim.checkpoint_files import manifests
from fedsim.config import compose, resolve
from fedsim.main import go_on, simulate

KILLS = int(os.environ.get("FEDSIM_KILLS", "3"))
COMMAND = [sys.executable, "-m", "fedsim.main"]
RUN = [
    "dataset=toy", "dataset.train_examples=60", "num_clients=3", "client=ewc", "strategy=fedadam",
    "scenario.num_experiences=5", "clock.rounds_per_experience=2", "training.epochs=1",
    "checkpoint.every=1", "progress=false", "participation=0.67",
]  # fmt: skip
NODE = resolve(compose(RUN))
LINES = ("rows.jsonl", "rejections.jsonl")


def outcome(folder):
    summary = json.loads((folder / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if "seconds" not in key}
    lines = {name: (folder / name).read_text() for name in LINES}
    return {k: v for k, v in kept.items() if not k.endswith("_s")}, lines


def forked(work):
    """Start a process that has everything imported already."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def begin_or_go_on(folder):
    """What a user does after a crash: go on if there is something to go on from."""
    if manifests(folder):
        go_on(folder, ["progress=false"])
    else:
        simulate({**NODE, "overwrite": True}, folder, started=0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, and the seconds that it takes once everything is imported."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin_or_go_on(folder)
    began = time.monotonic()
    os.waitpid(forked(lambda: begin_or_go_on(folder.with_name("again"))), 0)
    return outcome(folder), time.monotonic() - began


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_goes_on(tmp_path, whole, number):
    expected, seconds = whole
    folder = tmp_path / "run"
    pid = forked(lambda: begin_or_go_on(folder))
    time.sleep(random.Random(number).uniform(0.0, 0.9 * seconds))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reached = [int(path.stem[6:]) for path in manifests(folder)]
    print(f"killed after round {reached[0] if reached else 0}")
    _, status = os.waitpid(forked(lambda: begin_or_go_on(folder)), 0)
    assert status == 0
    assert outcome(folder) == expected
    assert not (folder / "checkpoints").exists()


def start(folder):
    """The command, as a user runs it."""
    words = [*COMMAND, *RUN, f"hydra.run.dir={folder}"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def test_the_exit_code_tells_of_an_interruption(tmp_path):
    running = start(tmp_path / "run")
    while not manifests(tmp_path / "run") and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert f"with: fedsim resume={tmp_path / 'run'}" in said
    assert "Traceback" not in said


def test_an_interruption_before_there_is_anything_to_keep(tmp_path):
    running = start(tmp_path / "run")
    while not (tmp_path / "run" / ".hydra").exists() and running.poll() is None:
        time.sleep(0.002)  # it is importing torch now
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not manifests(tmp_path / "run")
