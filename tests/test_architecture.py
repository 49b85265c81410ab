"""The layers: who may import whom."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedsim", "strategies", "clients", "scenarios")
EXTENSIONS = {"strategies", "clients", "scenarios"}
FLOWER = {
    "apps", "arrays", "averaging", "checkpoint", "contexts", "course", "engine", "execution",
    "faults", "flower_engine", "gate", "grid", "intake", "loop", "main", "nursery", "parcels",
    "ray_runtime", "replies", "results", "roster", "screen", "server_memory", "simulation", "state",
    "strategy", "wire", "workers", "works",
}  # fmt: skip
HYDRA = {"apps", "build", "config", "main"}


def modules():
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def imports(path, *, top_level=False):
    """Names of the packages a file imports, anywhere or when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = list(tree.body) if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tops(path, **options):
    return {name.split(".")[0] for name in imports(path, **options)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    package, found = path.relative_to(ROOT).parts[0], tops(path)
    if package == "fedsim":
        assert not found & EXTENSIONS, "fedsim/ knows no extension"
    else:
        assert not found & (EXTENSIONS - {package}), "extensions do not know each other"
        assert "hydra" not in found
        assert "flwr" not in found, "methods see tensors, not messages"
    if package == "fedsim" and path.stem not in FLOWER:
        assert "flwr" not in found
    if package == "fedsim" and path.stem not in HYDRA:
        assert "hydra" not in found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_avalanche_is_imported_only_by_those_who_need_it(path):
    """It takes seconds, so these modules in turn are imported on use only."""
    if path.parent.name == "clients" and path.stem.startswith("avalanche_"):
        return
    assert "avalanche" not in tops(path, top_level=True)


def test_functional_imports_torch_and_nothing_else_of_size():
    allowed = {"torch", "math", "collections", "dataclasses", "typing", "numpy", "__future__"}
    for path in sorted((ROOT / "fedsim" / "functional").glob("*.py")):
        outside = {n for n in imports(path) if not n.startswith("fedsim.functional")}
        assert {n.split(".")[0] for n in outside} <= allowed, path.name


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(listed) == {*PACKAGES, "conf"}


def test_files_stay_small():
    long = {p.name: n for p in modules() if (n := len(p.read_text().splitlines())) > 300}
    assert not long
