"""Blocks that memory is too small for."""

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.cohort import Block
from fedsim.engine import LocalEngine
from fedsim.grid import LocalGrid
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

CLIENTS = 12


def run(cohort):
    client = small_client(small_setting(num_clients=CLIENTS), kind=SGD)
    grid = LocalGrid(client_app_of(lambda _: client), CLIENTS, raise_errors=True, cohort=cohort)
    strategy = FedAvg(1.0, 0.0, min_available_nodes=1)
    done = list(small_loop(strategy, client, grid=grid).run(first_arrays(client.setting)))
    assert [len(log.cohort) for log, _ in done[1:]] == [CLIENTS] * (len(done) - 1)
    return to_params(done[-1][1])


@pytest.mark.parametrize(("room", "left"), [(12, []), (6, [12]), (4, [12, 6, 6]), (2, [12, 6, 3])])
def test_a_block_without_memory_is_halved_and_the_same_clients_are_trained(
    monkeypatch, caplog, room, left
):
    wanted = run("off")
    failed = []
    train = Block.train

    def scarce(block):
        if len(block.downs) > room:
            failed.append(len(block.downs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(block)

    monkeypatch.setattr(Block, "train", scarce)
    got = run(12)
    assert failed[: len(left)] == left
    assert len(failed) <= 7  # of the first round: later blocks are smaller from the start
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    assert ("out of memory" in caplog.text) == bool(left)


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
