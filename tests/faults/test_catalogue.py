"""The catalogue in ``docs/reliability.md`` and the tests say the same."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"^\| (?P<case>[^|]+) \| (?P<outcome>\w+)[^|]*\| `(?P<test>[^`]+::[^`]+)` \|$", re.MULTILINE
)


def written():
    """Outcome by test, as the document has it."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    return {row["test"]: row["outcome"] for row in ROW.finditer(text)}


def declarations():
    """Outcome by test, as the tests of this folder declare it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.faults.{path.stem}")
        for name, test in vars(module).items():
            for case, outcome in getattr(test, "outcomes", {}).items():
                found[f"faults/{path.name}::{name}{f'[{case}]' if case else ''}"] = outcome
    return found


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_document_lists_the_cases_with_their_outcomes():
    declared = declarations()
    files = {test.partition("::")[0] for test in declared}
    here = {test: o for test, o in written().items() if test.partition("::")[0] in files}
    assert here == declared
    assert len(here) >= 30


def test_cases_that_are_tested_elsewhere_exist():
    for test in written():
        path, _, name = test.partition("::")
        assert name.split("[")[0] in functions(ROOT / "tests" / path), test


def test_every_outcome_is_a_defined_state():
    assert set(written().values()) <= {"survived", "rejected", "refused", "ended"}
