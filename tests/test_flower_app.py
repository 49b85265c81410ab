"""What Flower packs into the app that `flwr run` sends."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[1]
PACKED = ("fedsim", "clients", "strategies", "scenarios", "conf")


@pytest.fixture(scope="module")
def packed():
    """The app's files."""
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as archive:
        return {name: archive.getinfo(name).file_size for name in archive.namelist()}


def test_every_module_and_choice_travels(packed):
    """Flower leaves out ``test_*.py``, ``*_test.py``, ``lib/`` and more: name no module so."""
    needed = {
        path.relative_to(ROOT).as_posix()
        for package in PACKED
        for ending in ("*.py", "*.yaml")
        for path in (ROOT / package).rglob(ending)
    }
    assert needed - packed.keys() == set()


def test_nothing_else_travels(packed):
    tops = {name.split("/")[0] for name in packed}
    assert tops <= {*PACKED, ".info", "pyproject.toml", "README.md", "LICENSE"}


def test_the_project_has_no_table_that_flower_would_take_out_of_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "federations" not in project["tool"]["flwr"]
