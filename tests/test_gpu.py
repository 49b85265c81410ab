"""Runs on an accelerator end like runs on the CPU, every time."""

import json

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

pytestmark = pytest.mark.gpu

SMALL = ["progress=false", "training.epochs=2", "clock.rounds_per_experience=2", "num_clients=4"]
GRAPH = ["num_clients=4", "progress=false", "clock.rounds_per_experience=6"]
RUNS = {
    "replay": SMALL,
    "cohort": [*SMALL, "client=sgd", "engine.cohort=4"],
    "batch_norm": ["scenario=single", "client=sgd", "backbone=slim_resnet18", "num_clients=2",
                   "training.epochs=1", "clock.rounds_per_experience=3", "progress=false"],
    "fedprox": [*SMALL, "client=fedprox", "strategy=fedprox"],
    "ewc": [*SMALL, "client=ewc"],
    "icarl": [*SMALL, "client=icarl", "strategy=icarl"],
    "fedproto": [*SMALL, "client=fedproto", "strategy=fedproto"],
    "fedper": [*SMALL, "client=fedper", "strategy=fedper"],
    "fedadam": [*SMALL, "client=sgd", "strategy=fedadam"],
    "avalanche_replay": [*SMALL, "client=avalanche_replay"],
    "avalanche_ewc": [*SMALL, "client=avalanche_ewc"],
    "avalanche_lwf": [*SMALL, "client=avalanche_lwf"],
    "avalanche_gem": [*SMALL, "client=avalanche_gem"],
    "avalanche_der": [*SMALL, "client=avalanche_der"],
    "prototypes": ["experiment=fedrecon_digits", "progress=false"],
    "dkvb": ["experiment=dkvb_digits", "progress=false", "training.epochs=2"],
    "dkvb_toy": ["experiment=dkvb_toy", "progress=false", "training.epochs=2"],
    "fedpub": ["experiment=fedpub_communities", "progress=false", "clock.rounds_per_experience=10"],
    "graph_fedavg": ["scenario=graph", "dataset=digits_graph", "partition=metis", "backbone=gcn",
                     "client=sgd", "training.batch_size=0", *GRAPH],
    "graph_gcfl": ["scenario=graph", "dataset=digits_graph", "partition=metis", "backbone=gcn",
                   "client=sgd", "strategy=gcfl", "training.batch_size=0", *GRAPH],
    "graph_stream": ["scenario=graph_class_incremental", "dataset=digits_graph",
                     "partition=louvain", "backbone=sage", "client=sgd", "training.batch_size=0",
                     *GRAPH],
}  # fmt: skip


def ended(overrides, folder):
    summary = simulate(resolve(compose(overrides)), folder, started=0.0)
    assert json.loads((folder / "summary.json").read_text())["digest"] == summary["digest"]
    return summary


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_where_the_cpu_ends(name, tmp_path):
    here = ended(RUNS[name], tmp_path / "cpu")
    there = ended([*RUNS[name], "engine.device=cuda"], tmp_path / "cuda")
    again = ended([*RUNS[name], "engine.device=cuda"], tmp_path / "again")
    # draws of dropout and noise differ between devices, sums in their last bits
    assert there["test_accuracy"] == pytest.approx(here["test_accuracy"], abs=0.05)
    assert again["test_accuracy"] == pytest.approx(there["test_accuracy"], abs=0.05)


def test_what_travels_and_what_is_kept_is_on_the_cpu(tmp_path):
    """Else a state could not be stored, and a shard would fill the accelerator's memory."""
    from fedsim.apps import client_app_of
    from fedsim.build import build
    from fedsim.engine import LocalEngine
    from fedsim.results import Results
    from fedsim.state import ClientState

    node = resolve(compose([*RUNS["fedpub"], "engine.device=cuda"]))
    simulation = build(node)
    app = client_app_of(lambda _: simulation.client)
    engine = LocalEngine(device="cuda")
    count = simulation.setting.scenario.num_clients
    grid = engine.grid(app, num_clients=count, seed=0, run_dir=tmp_path)
    results = Results(tmp_path, personal=True)
    simulation.run(grid, grid.roster, results, started=0.0)
    states = [ClientState(grid.store.get(client)) for client in grid.store.ids()]
    assert states
    assert all(t.device.type == "cpu" for s in states for g in s.values() for t in g.values())
    shard = simulation.setting.scenario.shard(0, 0, "train")
    assert shard.inputs.x.device.type == "cpu"
