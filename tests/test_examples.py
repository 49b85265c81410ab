"""The examples of the documentation, as a user runs them."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
WANTED = {
    "plain_federated": {"skew.png"},
    "federated_continual": {"matrix.png", "continual.html"},
    "fedpub": {"similarity.png"},
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_an_example_runs_and_leaves_what_it_says(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    left = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert WANTED[name] <= {path.name for path in tmp_path.iterdir()}
    if name == "plain_federated":
        even, skewed = (run.summary["test_accuracy"] for run in left["runs"].values())
        assert even > skewed
    if name == "federated_continual":
        assert left["runs"]["naive"].summary["forgetting"] > 0.5
        assert left["runs"]["replay"].summary["forgetting"] < 0.2
    if name == "fedpub":
        assert left["fedpub"].summary["model"] == "personal"
