"""The same run in process and on Flower's own engine (Ray) gives the same bits."""

import json

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsim.apps import client_app_of
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

pytestmark = pytest.mark.engine

ALL = {"min_train_nodes": 4, "min_evaluate_nodes": 4, "min_available_nodes": 4}


def on_ray(server_app, client_app, num_clients):
    pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_clients, backend_config=resources)


def cached_client(context, cache={}):  # noqa: B006 - one client per Ray worker
    torch.set_num_threads(1)
    return cache.setdefault("client", small_client())


def test_fedavg_in_process_equals_flowers_start_on_ray():
    client = small_client()
    rounds = list(small_loop(FedAvg(**ALL), client).run(first_arrays(client.setting)))
    ours = rounds[-1][1]
    found = []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        start = first_arrays(small_setting())
        found.append(FedAvg(**ALL).start(grid, start, num_rounds=4).arrays)

    on_ray(server, client_app_of(cached_client), 4)
    assert isinstance(found[0], ArrayRecord)
    theirs = found[0].to_torch_state_dict()
    for name, array in ours.items():
        # Flower's runtime returns replies in any order, so its sums differ in the last bit
        torch.testing.assert_close(theirs[name], array.tensor, rtol=1e-6, atol=1e-7)


def test_the_flower_app_gives_the_digest_of_the_command(tmp_path, monkeypatch):
    from fedsim import apps
    from fedsim.config import compose, resolve
    from fedsim.main import simulate

    overrides = [
        "dataset=toy", "dataset.train_examples=240", "num_clients=3", "training.epochs=1",
        "clock.rounds_per_experience=1", "scenario.num_experiences=3", "progress=false",
        "participation=0.67", "hydra.run.dir=.",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    here = simulate(resolve(compose(overrides)), tmp_path / "here", started=0.0)
    monkeypatch.setenv("PYTHONPATH", str(__import__("pathlib").Path(__file__).parents[1]))

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
