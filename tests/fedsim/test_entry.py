"""Ctrl-C before a command has begun, as a process gets it."""

import importlib
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SMALL = "dataset=toy progress=false clock.rounds_per_experience=1"
# what is typed, and the module after whose import the signal comes: early, then in torch's
MOMENTS = [
    ("fedsim", SMALL, "hydra.version"),
    ("fedsim", SMALL, "torch.torch_version"),
    ("fedsim-pretrain", "", "torch.torch_version"),
    ("fedsim-preview", SMALL, "torch.torch_version"),
    ("fedsim-reproduce", "dkvb", "torch.torch_version"),
    ("fedsim-report", "runs", "numpy.version"),
]


@pytest.mark.parametrize(("command", "words", "module"), MOMENTS)
def test_ctrl_c_during_imports_is_one_line_and_130(command, words, module, tmp_path):
    entry, function = SCRIPTS[command].split(":")
    code = f"import sys; from {entry} import {function}; sys.exit({function}())"  # as pip writes it
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", code, *words.split()],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = []
    with process:
        for line in process.stderr:
            if not line.startswith("import time:"):
                said.append(line)
            elif line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
    text = "".join(said).strip()
    assert text.startswith(f"{command}: interrupted"), text
    assert "\n" not in text
    assert process.returncode == 130
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    code = "from fedsim.entry import main; main()"
    done = subprocess.run(
        ["sh", "-c", f'trap "" INT; {sys.executable} -c "import os, signal;'
         f' os.kill(os.getpid(), signal.SIGINT); {code}" --help'],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "fedsim" in done.stdout


def test_every_command_has_an_entry_and_its_module_a_main():
    for command, target in SCRIPTS.items():
        entry, function = target.split(":")
        assert entry == "fedsim.entry", command
        assert callable(getattr(importlib.import_module(entry), function))
