"""Blocks that memory is too small for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.cohort import Block
from fedsim.engine import LocalEngine
from fedsim.grid import LocalGrid
from fedsim.state import ClientState
from tests.fedsim.builders import (
    first_arrays,
    small_client,
    small_loop,
    small_setting,
    small_training,
)

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 12


def run(cohort):
    client = small_client(small_setting(num_clients=CLIENTS), kind=SGD)
    grid = LocalGrid(client_app_of(lambda _: client), CLIENTS, raise_errors=True, cohort=cohort)
    strategy = FedAvg(1.0, 0.0, min_available_nodes=1)
    done = list(small_loop(strategy, client, grid=grid).run(first_arrays(client.setting)))
    assert [len(log.cohort) for log, _ in done[1:]] == [CLIENTS] * (len(done) - 1)
    return to_params(done[-1][1])


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError("Unable to allocate 8. B for an array"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize(
    ("room", "failing", "error"),
    [(12, [], ERRORS[0]), *((4, [12, 6], error) for error in ERRORS), (2, [12, 6, 3], ERRORS[0])],
)
def test_a_block_without_memory_is_halved_and_the_same_clients_are_trained(
    monkeypatch, caplog, room, failing, error
):
    wanted = run("off")
    failed = []
    train = Block.train

    def scarce(block):
        if len(block.downs) > room:
            failed.append(len(block.downs))
            raise error
        return train(block)

    monkeypatch.setattr(Block, "train", scarce)
    got = run(12)
    assert failed == failing  # later blocks are smaller from the start
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    assert ("out of memory" in caplog.text) == bool(failing)


class Counts(SGD):
    """Remembers how often it has trained."""

    def upload(self, model, shard, down, state):
        before = state["rounds"]["n"] if "rounds" in state else torch.zeros(())
        state["rounds"] = {"n": before + 1}
        return super().upload(model, shard, down, state)


def test_halves_leave_what_every_client_remembers(monkeypatch):
    train = Block.train

    def scarce(block):
        if len(block.downs) > 2:  # of ten, two are a block and the third is alone
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(block)

    monkeypatch.setattr(Block, "train", scarce)
    client = small_client(small_setting(num_clients=10), kind=Counts)
    grid = LocalGrid(client_app_of(lambda _: client), 10, raise_errors=True, cohort=10)
    strategy = FedAvg(1.0, 0.0, min_available_nodes=1)
    loop = small_loop(strategy, client, grid=grid)
    for number, _ in enumerate(loop.run(first_arrays(client.setting))):
        grid._executor.most = 10  # as if every round were the first to be refused memory
        kept = [ClientState(grid.store.get(c)) for c in range(10) if number]
        assert [float(state["rounds"]["n"]) for state in kept] == [number] * len(kept)
    assert number == client.setting.clock.num_rounds


class Wide(nn.Module):
    """Few weights, but 4 MB for every step of the maths and batch of 16: 123 MB for 32 clients."""

    def __init__(self, input_shape):
        super().__init__()
        self.num_features = 6
        self.scale = nn.Parameter(torch.linspace(0.5, 1.0, 6))

    def forward(self, inputs):
        repeated = (inputs * self.scale).repeat(1, 10_000)
        return repeated.tanh().view(len(inputs), -1, 6).mean(1)


def run_with_little_memory(spare):
    """Two runs of 32 clients at once, the second with so many more bytes of address space only."""
    import resource

    torch.set_num_threads(1)
    setting = small_setting(num_clients=32, num_experiences=1, rounds=2, backbone=Wide)
    found = []
    for limit in (None, spare):
        client = SGD(setting, training=small_training(batch_size=16, epochs=1))
        app = client_app_of(lambda _, served=client: served)
        grid = LocalGrid(app, 32, raise_errors=True, cohort=32)
        loop = small_loop(FedAvg(1.0, 0.0, min_available_nodes=1), client, grid=grid)
        if limit is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + limit
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        *_, (log, arrays) = loop.run(first_arrays(setting))
        (cohort,) = app._cohorts.values()
        weights = {n: t.tolist() for n, t in to_params(arrays).items()}
        found.append((log.cohort, weights, cohort.reason, grid._executor.most))
    print(json.dumps(found))


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_the_systems_own_refusal_of_memory_halves_a_block():
    code = "from tests.fedsim.test_execution import *; run_with_little_memory(300_000_000)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    (cohort, weights, declined, most), mine = json.loads(done.stdout)
    assert (mine[0], mine[2], declined) == (cohort, None, None)
    assert most == sys.maxsize
    assert 8 <= mine[3] <= 16  # what the failed block held is free again
    for name, values in weights.items():
        torch.testing.assert_close(
            torch.tensor(mine[1][name]), torch.tensor(values), rtol=0, atol=1e-6
        )


def test_a_client_that_has_no_memory_alone_says_so(monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Block, "train", never)
    monkeypatch.setattr(SGD, "train", never)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(12)
    assert any("client 0" in note for note in caught.value.__notes__)


def test_the_plan_is_told(monkeypatch):
    assert LocalEngine().plan(10) == "10 clients on cpu (CPU), in this process, one by one"
    text = LocalEngine(workers=3, cohort="auto").plan(10)
    assert text == "10 clients on cpu (CPU), 3 worker processes, blocks (auto)"

    class Properties:
        name, total_memory = "Some GPU", 80_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    text = LocalEngine(device="cuda", cohort="auto").plan(10)
    assert text == "10 clients on cuda (Some GPU, 80 GB), in this process, blocks (auto)"
