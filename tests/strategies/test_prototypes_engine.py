"""Prototypes on Flower's own engine (Ray) are those of the engine in process."""

import json
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from fedsim import apps
from fedsim.apps import client_app_of
from fedsim.config import compose, resolve
from fedsim.main import simulate
from tests.test_parity import on_ray

pytestmark = pytest.mark.engine


def test_the_table_on_ray_has_the_digest_of_the_table_in_process(tmp_path, monkeypatch):
    overrides = [
        "experiment=fedrecon_digits", "num_clients=3", "scenario.num_experiences=3",
        "progress=false", "hydra.run.dir=.",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    here = simulate(resolve(compose(overrides)), tmp_path / "here", started=0.0)
    server = ServerApp()

    @server.main()
    def main(grid, context):
        context.run_config["overrides"] = " ".join(overrides)
        apps.main(grid, context)

    on_ray(server, client_app_of(lambda context: apps._client(" ".join(overrides))), 3)
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")
    there = json.loads(summary.read_text())
    assert there["digest"] == here["digest"]
    assert there["test_accuracy"] == here["test_accuracy"]
    assert there["measure/refused_missions"] == 0
