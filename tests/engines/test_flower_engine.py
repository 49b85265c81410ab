"""Flower's simulation engine on a Ray cluster of two nodes gives the bits of the run in process."""

import json
import signal
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsim.build import build
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from fedsim.engine import LocalEngine
from fedsim.flower_engine import FlowerEngine
from fedsim.interruption import Interrupted
from fedsim.main import go_on, simulate
from fedsim.results import digest
from fedsim.roster import OrderedGrid
from fedsim.state import RoundStore
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
    last = Path("/tmp/ray/ray_current_cluster")  # Ray would look for this one ever after
    if last.exists() and last.read_text().endswith(f":{port}"):
        last.unlink()


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


def test_an_interrupted_run_goes_on_with_what_clients_and_strategy_remember(
    on_ray, tmp_path, monkeypatch
):
    exchange, ends = OrderedGrid.send_and_receive, []

    def noted(store, _commit=RoundStore.commit):
        _commit(store)
        ends.append(store)

    def stopped(grid, messages, **options):
        replies = exchange(grid, messages, **options)
        if len(ends) == 2:  # after the untrained model and round 1: clients have trained again
            raise Interrupted(signal.SIGINT)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(OrderedGrid, "send_and_receive", stopped)
        patch.setattr(RoundStore, "commit", noted)
        with pytest.raises(KeyboardInterrupt) as caught:
            on_ray(*overrides_of("fedpub"))
    assert "go on after round 1 with: fedsim resume=" in caught.value.__notes__[0]
    assert go_on(tmp_path / "there", [])
    summary = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert summary["digest"] == digest_here("fedpub")


def failing(ways, mark):
    """A round for every way."""
    words = ["client=sgd", "client._target_=tests.engines.failing.Failing"]
    options = [f"+client.ways=[{','.join(ways)}]", f"+client.mark={mark}"]
    return overrides_of("fedavg", *words, *options, f"clock.rounds_per_experience={len(ways) // 2}")


def test_clients_that_raise_or_hang_are_left_out(on_ray, tmp_path):
    words = failing(["none", "raise", "hang", "none"], tmp_path / "unused")
    there = on_ray(*words, "engine.raise_errors=false", "engine.timeout=10")
    lines = (tmp_path / "there" / "rejections.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [(row["round"], row["client"]) for row in rejected] == [(2, 1), (3, 1)]
    assert rejected[0]["reason"] == "ValueError: the client is out of order"
    assert rejected[1]["reason"] == "no answer within 10 s"
    words = failing(["none", "raise", "raise", "none"], tmp_path / "unused")
    node = resolve(compose([*words, "engine.raise_errors=false", "hydra.run.dir=."]))
    here = simulate(node, tmp_path / "here", started=0.0)
    assert there["digest"] == here["digest"]  # the same two updates are missing, and no other


def test_a_process_that_dies_is_replaced_and_flowers_own_loop_does_not_notice(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT))
    mark = tmp_path / "died"
    node = resolve(compose([*failing(["none", "die"], mark), "hydra.run.dir=."]))
    simulation = build(node)

    def drive(grid, roster):
        return FedAvg(**ALL).start(grid, simulation.initial_arrays(), num_rounds=2)

    there = FlowerEngine(address=cluster).run(simulation, node, tmp_path, drive)
    assert mark.exists()
    here = LocalEngine().run(simulation, node, tmp_path, drive)
    assert digest(there.arrays) == digest(here.arrays)


def test_a_cluster_without_room_is_refused(cluster, on_ray):
    with pytest.raises(ConfigError, match=r"engine.num_cpus=64 .* Ray has 2 CPU cores"):
        on_ray(*overrides_of("fedavg"), "engine.num_cpus=64")
