"""Sweeps that are called again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fedsim.checks import ConfigError
from fedsim.sweep import FAILED, LEDGER, Job, distinguishing, last_events, read, this_call

TOY = [
    "dataset=toy", "dataset.train_examples=120", "clock.rounds_per_experience=1",
    "training.epochs=1", "num_clients=2", "scenario.num_experiences=2",
]  # fmt: skip
TWELVE = ["client=sgd,replay", "partition=iid,dirichlet", "seed=0,1,2"]
COMMAND = [sys.executable, "-m", "fedsim.main"]
MEASURED = ("test_accuracy", "forgetting", "digest", "upload_bytes")


def sweep(tmp_path, *arguments, folder="sweep"):
    words = [*COMMAND, "-m", *TOY, *arguments, f"hydra.sweep.dir={folder}"]
    return subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )


def table(folder):
    """What the sweep measured, by job."""
    found = {}
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        found[path.parent.name] = {name: summary[name] for name in MEASURED}
    return found


def job(tmp_path, name="a"):
    return Job(sweep_dir=tmp_path, run_dir=tmp_path.resolve() / name, number=0, shown=False)


def test_a_killed_sweep_goes_on_and_ends_like_an_uninterrupted_one(tmp_path):
    assert sweep(tmp_path, *TWELVE, folder="whole").returncode == 0
    words = [*COMMAND, "-m", *TOY, *TWELVE, "hydra.sweep.dir=killed"]
    running = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(table(tmp_path / "killed")) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = table(tmp_path / "killed")
    assert 5 <= len(before) < 12
    assert sweep(tmp_path, *TWELVE, folder="killed").returncode == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert len(table(tmp_path / "killed")) == 12
    events = [entry for entry in read(tmp_path / "killed") if "job" in entry]
    second = {e["job"]: e["event"] for e in this_call(read(tmp_path / "killed"))}
    assert all(second[name] == "skipped" for name in before)
    started = Counter(e["job"] for e in events if e["event"] == "started")
    assert all(started[name] == 1 for name in before), "a finished job ran again"


def test_a_failing_job_is_named_and_the_others_run(tmp_path):
    done = sweep(tmp_path, "num_clients=2,5000,3")
    assert done.returncode == FAILED
    assert "2 finished, 0 were finished before, 1 failed" in done.stderr
    assert "Failed jobs" in done.stderr
    assert "num_clients is 5000" in done.stderr
    assert len(table(tmp_path / "sweep")) == 2


def test_what_fails_once_is_tried_again(tmp_path):
    def broken(_, resume):
        raise RuntimeError("no luck\nwith this")

    def whole(node, resume):
        return {"test_accuracy": node["x"]}

    assert job(tmp_path).run(lambda: {"x": 0.5}, broken) is None
    assert "no luck" in (tmp_path / "a" / "error.txt").read_text()
    assert read(tmp_path)[-1]["error"] == "RuntimeError: no luck"
    assert job(tmp_path).run(lambda: {"x": 0.5}, whole) == {"test_accuracy": 0.5}
    assert [entry["event"] for entry in read(tmp_path)] == [
        "started", "failed", "started", "finished",
    ]  # fmt: skip
    assert not (tmp_path / "a" / "error.txt").exists()


def test_a_job_is_skipped_only_if_it_is_the_same(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "summary.json").write_text('{"test_accuracy": 0.25}')
    (folder / "config.yaml").write_text("x: 1\nprogress: true\n")

    def never(_, resume):
        raise AssertionError("ran a finished job")

    done = job(tmp_path).run(lambda: {"x": 1, "progress": False}, never)
    assert done == {"test_accuracy": 0.25}
    assert job(tmp_path).run(lambda: {"x": 2, "progress": False}, never) is None
    assert "another configuration (x differ)" in read(tmp_path)[-1]["error"]


def test_an_interrupted_sweep_stops(tmp_path, capsys):
    def interrupted(_, resume):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path).run(lambda: {"x": 1}, interrupted)
    assert "goes on from here" in capsys.readouterr().err


def test_jobs_run_quietly_and_may_replace_what_an_interrupted_one_left(tmp_path):
    def look(node, resume):
        assert node["overwrite"]
        assert not node["progress"]
        return {}

    job(tmp_path).run(lambda: {"progress": True, "overwrite": False}, look)


def test_a_half_written_line_is_skipped(tmp_path):
    (tmp_path / LEDGER).write_text('{"event": "sweep"}\n{"event": "started", "job": "a"}\n{"ev')
    assert last_events(read(tmp_path))["a"]["event"] == "started"


@pytest.mark.parametrize("path", sorted(Path("conf/sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_named_sweeps_compose(path):
    from fedsim.config import compose, resolve

    whole = compose([f"sweep={path.stem}"], with_hydra=True)
    assert whole.hydra.sweep.dir == f"runs/sweeps/{path.stem}"
    for key, values in whole.hydra.sweeper.params.items():
        for value in str(values).split(","):
            resolve(compose([f"sweep={path.stem}", f"{key}={value}"]))


def test_jobs_are_named_by_what_tells_them_apart():
    names = ["a=1,b=2,seed=0", "a=1,b=3,seed=0"]
    assert list(distinguishing(names).values()) == ["b=2", "b=3"]
    assert distinguishing(["a=1"]) == {"a=1": "a=1"}


def test_an_objective_that_does_not_exist_is_named():
    from fedsim.main import _objective

    assert _objective({"test_accuracy": 0.5}, "test_accuracy") == 0.5
    with pytest.raises(ConfigError, match="objective=x"):
        _objective({"test_accuracy": 0.5}, "x")


def checkpointed(tmp_path):
    """A job's folder with something like a checkpoint in it."""
    folder = tmp_path / "a" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "round-000003.json").write_text("{}")
    return tmp_path / "a"


def test_an_interrupted_job_goes_on_and_a_failed_one_begins_anew(tmp_path):
    asked = []

    def simulate(node, resume):
        asked.append(resume)
        return {"test_accuracy": 0.5}

    folder = checkpointed(tmp_path)
    job(tmp_path).run(lambda: {"x": 1}, simulate)
    (folder / "error.txt").write_text("it failed")
    job(tmp_path).run(lambda: {"x": 1}, simulate)
    assert asked == [True, False]
    events = [entry["event"] for entry in read(tmp_path)]
    assert events == ["resumed", "finished", "started", "finished"]


def test_a_job_whose_checkpoint_is_of_no_use_begins_anew(tmp_path, capsys):
    from fedsim.checkpoint_files import CheckpointError

    def simulate(node, resume):
        if resume:
            raise CheckpointError("it is damaged")
        return {"test_accuracy": 0.5}

    checkpointed(tmp_path)
    assert job(tmp_path).run(lambda: {"x": 1}, simulate) == {"test_accuracy": 0.5}
    assert "begins anew: it is damaged" in capsys.readouterr().err


def test_a_full_disk_stops_the_sweep_and_is_no_failure(tmp_path):
    from fedsim.resumption import RunStoppedError

    def simulate(node, resume):
        raise RunStoppedError("no room left on the disk")

    with pytest.raises(RunStoppedError):
        job(tmp_path).run(lambda: {"x": 1}, simulate)
    assert [entry["event"] for entry in read(tmp_path)] == ["started", "interrupted"]
    assert not (tmp_path / "a" / "error.txt").exists()


def test_a_sweep_that_is_killed_in_a_job_goes_on_inside_it(tmp_path):
    """Each process is a copy of this one, which has everything imported."""
    from fedsim.checkpoint_files import manifests
    from tests.faults.test_kill import forked

    words = [*TOY, "checkpoint.every=1", "clock.rounds_per_experience=5", "client=sgd,ewc"]

    def call(folder):
        def work():
            from fedsim.main import main

            sys.argv = ["fedsim", "-m", *words, f"hydra.sweep.dir={folder}"]
            main()

        return forked(work)

    from fedsim.config import compose, resolve
    from fedsim.main import simulate

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    simulate(resolve(compose([*TOY, "progress=false"])), tmp_path / "once", started=0.0)  # imports
    assert os.waitpid(call(whole), 0)[1] == 0
    pid = call(killed)
    second = "*client=ewc*/checkpoints/round-000003.json"
    deadline = time.monotonic() + 120
    while not list(killed.glob(second)) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    (interrupted,) = {path.parents[1] for path in killed.glob("*/checkpoints/round-*.json")}
    assert manifests(interrupted)
    assert os.waitpid(call(killed), 0)[1] == 0
    assert table(killed) == table(whole)
    events = Counter((entry["event"], entry["job"]) for entry in read(killed) if "job" in entry)
    done = Counter(event for event, _ in events.elements())
    assert done == {"started": 2, "finished": 2, "skipped": 1, "resumed": 1}
