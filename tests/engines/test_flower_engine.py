"""Flower's simulation engine on a Ray cluster of two nodes gives the bits of the run in process."""

import json
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsim.build import build
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from fedsim.engine import LocalEngine
from fedsim.flower_engine import FlowerEngine
from fedsim.main import simulate
from fedsim.results import digest
from tests.engines.methods import METHODS, digest_here, overrides_of
from tests.engines.processes import BIN, Processes, free_ports, wait_until

pytestmark = pytest.mark.engine
pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
ALL = {"min_train_nodes": 2, "min_evaluate_nodes": 2, "min_available_nodes": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray cluster of two node processes, a core each."""
    port, client_port = free_ports(2)
    options = ["--num-cpus=1", "--block"]
    with Processes(tmp_path_factory.mktemp("ray")) as processes:
        head = processes.start(
            "head", BIN / "ray", "start", "--head", f"--port={port}", "--include-dashboard=false",
            f"--ray-client-server-port={client_port}", *options,
        )  # fmt: skip
        wait_until(lambda: "Ray runtime started" in head.log.read_text(), "the head", head)
        address = f"127.0.0.1:{port}"
        node = processes.start("node", BIN / "ray", "start", f"--address={address}", *options)
        wait_until(lambda: "Ray runtime started" in node.log.read_text(), "the node", node)
        yield address


@pytest.fixture
def on_ray(cluster, tmp_path, monkeypatch):
    """Runs overrides on the cluster."""
    monkeypatch.syspath_prepend(str(ROOT))  # as for `fedsim` in a folder with modules of one's own

    def run(*overrides, folder="there"):
        more = ["engine=flower", f"engine.address={cluster}", "hydra.run.dir=."]
        return simulate(resolve(compose([*overrides, *more])), tmp_path / folder, started=0.0)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_digest(method, on_ray):
    assert on_ray(*overrides_of(method))["digest"] == digest_here(method)


def failing(ways, mark):
    """Four rounds."""
    words = ["client=sgd", "client._target_=tests.engines.failing.Failing"]
    options = [f"+client.ways=[{','.join(ways)}]", f"+client.mark={mark}"]
    rounds = ["clock.rounds_per_experience=2", "engine.raise_errors=false"]
    return overrides_of("fedavg", *words, *options, *rounds)


def test_failing_clients_are_left_out_and_a_process_that_dies_is_replaced(on_ray, tmp_path):
    mark = tmp_path / "died"
    there = on_ray(*failing(["none", "raise", "hang", "die"], mark), "engine.timeout=30")
    assert mark.exists()
    lines = (tmp_path / "there" / "rejections.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [(row["round"], row["client"]) for row in rejected] == [(2, 1), (3, 1)]
    assert rejected[0]["reason"] == "ValueError: the client is out of order"
    assert rejected[1]["reason"] == "no answer within 30 s"
    words = [*failing(["none", "raise", "raise", "none"], mark), "hydra.run.dir=."]
    here = simulate(resolve(compose(words)), tmp_path / "here", started=0.0)
    assert there["digest"] == here["digest"]  # the same two updates are missing, and no other


def test_flowers_own_loop_comes_to_the_same_model_on_both_engines(cluster, tmp_path):
    node = resolve(compose(overrides_of("fedavg", "client=sgd", "hydra.run.dir=.")))
    simulation = build(node)

    def drive(grid, roster):
        return FedAvg(**ALL).start(grid, simulation.initial_arrays(), num_rounds=2)

    there = FlowerEngine(address=cluster).run(simulation, node, tmp_path, drive)
    here = LocalEngine().run(simulation, node, tmp_path, drive)
    assert digest(there.arrays) == digest(here.arrays)


def test_a_cluster_without_room_is_refused(cluster, on_ray):
    with pytest.raises(ConfigError, match=r"engine.num_cpus=64 .* Ray has 2 CPU cores"):
        on_ray(*overrides_of("fedavg"), "engine.num_cpus=64")
