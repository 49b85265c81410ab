"""What may be gone on with."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from fedsim.resumption import asked_for, claimed, full_disk, no_room, prepare, way_on


def run_dir(tmp_path, **changes):
    from fedsim.build import save_config

    save_config({**resolve(compose([])), **changes}, tmp_path)
    return tmp_path


def test_the_command_line_names_a_folder():
    assert asked_for(["seed=1"]) is None
    assert asked_for(["resume=null", "seed=1"]) is None
    assert asked_for(["progress=false", "resume=runs/a b"]) == (
        Path("runs/a b"),
        ["progress=false"],
    )
    with pytest.raises(ConfigError, match="expects the directory"):
        asked_for(["resume="])


def test_harmless_overrides_are_taken(tmp_path):
    words = ["progress=false", "checkpoint.every=3", "engine.keep_states=5"]
    node = prepare(run_dir(tmp_path), words)
    assert node["progress"] is False
    assert node["checkpoint"]["every"] == 3
    assert node["engine"]["keep_states"] == 5


@pytest.mark.parametrize("word", ["seed=1", "-m", "strategy=fedadam", "engine.device=cuda", "run"])
def test_others_are_refused(tmp_path, word):
    with pytest.raises(ConfigError, match="cannot stand beside resume="):
        prepare(run_dir(tmp_path), [word])


def test_keys_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no key 'checkpoint\.evry'"):
        prepare(run_dir(tmp_path), ["checkpoint.evry=1"])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        prepare(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="no configuration"):
        prepare(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare(tmp_path)
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system ['touch pwned']")
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare(tmp_path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("target", ["os.system", "fedsim.main.os.system", "mine.Strategy"])
def test_foreign_classes_need_trust(tmp_path, target):
    folder = run_dir(tmp_path, strategy={"_target_": target, "command": "touch pwned"})
    with pytest.raises(ConfigError, match=f"names {target}, .*trust=true"):
        prepare(folder)
    assert prepare(folder, ["trust=true"])["strategy"]["_target_"] == target


@pytest.mark.parametrize("name", ["fedpub_communities", "dkvb_cifar10", "fedrecon_omniglot"])
def test_shipped_experiments_need_none(tmp_path, name):
    from fedsim.build import save_config

    save_config(resolve(compose([f"experiment={name}"])), tmp_path)
    assert prepare(tmp_path)["name"]


def test_links_inside_are_fine_and_others_are_not(tmp_path):
    folder = run_dir(tmp_path / "run")
    (folder / "rows.jsonl").write_text("")
    (folder / "again").symlink_to(folder / "rows.jsonl")
    prepare(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "out").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out"):
        prepare(folder)


def test_two_processes_cannot_share_a_run(tmp_path):
    code = "import pathlib, sys\nfrom fedsim.resumption import claimed\n"
    code += "with claimed(pathlib.Path(sys.argv[1])):\n    pass"
    with claimed(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "another process is at work" in done.stderr
    assert not (tmp_path / ".lock").exists()


def test_a_full_disk_is_found_behind_other_errors():
    inner = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")
    outer = RuntimeError("a client failed")
    outer.__cause__ = inner
    assert full_disk(outer) is inner
    assert full_disk(OSError(errno.ENOENT, "no")) is None
    text = str(no_room(inner, way_on(Path("runs/a"), 3)))
    assert "No space left on device, writing rows.jsonl" in text
    assert "go on after round 3 with: fedsim resume=runs/a" in text
    assert "nothing to go on from" in way_on(Path("runs/a"), None)
