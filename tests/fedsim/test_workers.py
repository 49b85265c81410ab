"""Clients in worker processes: the same results, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from clients.ewc import EWC
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.engine import LocalEngine
from fedsim.grid import LocalGrid
from fedsim.results import digest
from fedsim.roster import FIRST_NODE
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

CLIENTS = 9
REMEMBERING = {"kind": EWC, "penalty": 1.0}
ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


@pytest.fixture(scope="module", autouse=True)
def _warm():
    """Import what torch's first optimiser does, which takes seconds: workers inherit it."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def messages(count, content=None, kind="train"):
    content = content or RecordDict({"arrays": to_record({"w": torch.zeros(2)})})
    return [Message(content, FIRST_NODE + client, kind) for client in range(count)]


def app_of(act):
    """An app whose clients do something and then send their number, plus what they got."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        number = context.node_config["partition-id"]
        act(number, context)
        arrays = message.content["arrays"].to_torch_state_dict()
        record = ArrayRecord({"w": arrays["w"] + number})
        metrics = MetricRecord({"num-examples": 1, "pid": os.getpid()})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    return app


def values(replies):
    return [
        None if r.has_error() else int(r.content["arrays"].to_torch_state_dict()["w"][0])
        for r in replies
    ]


def lives(pid):
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def gone(pids, within=5.0):
    end = time.monotonic() + within
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(lives, pids))


def run(workers, *, kind=None, between=None, **options):
    """Digest, evaluations and states of a whole run."""
    client = small_client(small_setting(num_clients=CLIENTS), **(kind or {}))
    app = client_app_of(lambda _: client)
    with LocalGrid(app, CLIENTS, raise_errors=True, workers=workers, **options) as grid:
        loop = small_loop(FedAvg(**ALL), client, grid=grid)
        for log, arrays in loop.run(first_arrays(client.setting)):  # noqa: B007 - the last
            if between is not None:
                between(log.tick.round, grid)
        states = {
            c: {n: dict(r) for n, r in grid.store.get(c).items() if isinstance(r, ConfigRecord)}
            | {n: digest(r) for n, r in grid.store.get(c).items() if isinstance(r, ArrayRecord)}
            for c in grid.store.ids()
        }
        evaluations = [upload.metrics["accuracy"] for upload in log.evaluations]
        return digest(arrays), str(evaluations), states


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", ["off", 3])
def test_any_number_of_workers_gives_the_same_bits(cohort):
    first = run(1, cohort=cohort)
    assert run(2, cohort=cohort) == first
    assert run(4, cohort=cohort) == first


def test_what_clients_remember_is_the_same():
    first = run(1, kind=REMEMBERING)
    assert len(first[2]) == CLIENTS
    assert run(2, kind=REMEMBERING) == first
    assert run(1, kind=REMEMBERING, timeout=60.0) == first  # one worker


def test_the_order_of_execution_does_not_show():
    assert run(2, order=lambda m: m[::-1]) == run(1)


def test_clients_run_in_other_processes_and_replies_come_in_client_order():
    with LocalGrid(app_of(lambda *_: None), 6, workers=2) as grid:
        replies = grid.send_and_receive(messages(6)[::-1])
        pids = {r.content["metrics"]["pid"] for r in replies}
        assert pids <= set(grid.worker_pids)
        assert os.getpid() not in pids
    assert values(replies) == [0, 1, 2, 3, 4, 5]


def test_two_messages_to_one_client_meet_the_same_state():
    def count(number, context):
        seen = context.state.get("seen", MetricRecord({"n": 0}))["n"]
        context.state["seen"] = MetricRecord({"n": seen + 1})

    with LocalGrid(app_of(count), 2, workers=2) as grid:
        grid.send_and_receive(messages(2) + messages(2))
        assert [grid.store.get(c)["seen"]["n"] for c in (0, 1)] == [2, 2]


def test_a_reply_is_handed_out_before_the_last_client_runs(tmp_path):
    def note(number, _):
        (tmp_path / str(number)).touch()

    with LocalGrid(app_of(note), 40, workers=2) as grid:
        replies = grid.stream(messages(40))
        next(replies)
        time.sleep(0.2)
        begun = len(list(tmp_path.iterdir()))
        assert 0 < begun < 20
        assert len(list(replies)) == 39


def test_records_of_many_messages_are_not_copied_for_each_worker():
    big = RecordDict({"arrays": to_record({"w": torch.zeros(10_000_000)})})  # 40 MB

    def private(number, context):
        rollup = Path("/proc/self/smaps_rollup").read_text()
        kilobytes = [int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Private_")]
        context.state["kb"] = MetricRecord({"n": sum(kilobytes)})

    app = ClientApp()

    @app.train()
    def train(message, context):
        message.content["arrays"]["w"].tensor.sum()
        private(0, context)
        return Message(RecordDict({"m": context.state["kb"]}), reply_to=message)

    data = torch.ones(25_000_000)  # 100 MB that the workers inherit and read

    @app.query()
    def query(message, context):
        data.sum()
        private(0, context)
        return Message(RecordDict({"m": context.state["kb"]}), reply_to=message)

    with LocalGrid(app, 2, workers=2) as grid:
        for kind in ("train", "query"):
            replies = grid.send_and_receive(messages(2, big, kind))
            assert max(r.content["m"]["n"] for r in replies) < 30_000


# ---- workers that die --------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_nothing_is_lost():
    killed = []

    def kill(round_, grid):
        if grid.worker_pids and len(killed) < 2:
            killed.append(grid.worker_pids[0])
            os.kill(killed[-1], signal.SIGKILL)

    assert run(2, kind=REMEMBERING, between=kill) == run(1, kind=REMEMBERING)
    assert len(killed) == 2


@pytest.mark.parametrize("cohort", ["off", 3])
def test_a_worker_killed_while_it_trains_gives_the_crash_free_result(tmp_path, cohort):
    class Dying(EWC):
        def upload(self, *args):
            if not (tmp_path / "died").exists() and args[2].client_id == 4:
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().upload(*args)

    assert run(2, kind={**REMEMBERING, "kind": Dying}, cohort=cohort) == run(
        1, kind=REMEMBERING, cohort=cohort
    )
    assert (tmp_path / "died").exists()


def kill_if_2(number, _):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_client_that_kills_every_worker_is_rejected_and_the_others_are_not():
    with LocalGrid(app_of(kill_if_2), 5, workers=2) as grid:
        replies = grid.send_and_receive(messages(5))
    assert values(replies) == [0, 1, None, 3, 4]
    assert "its workers died" in replies[2].error.reason


def test_a_client_that_kills_every_worker_can_stop_the_run():
    grid = LocalGrid(app_of(kill_if_2), 5, workers=2, raise_errors=True)
    with grid, pytest.raises(RuntimeError, match="client 2"):
        grid.send_and_receive(messages(5))


# ---- clients that take too long, or fail -------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_past_its_deadline_is_rejected_and_the_run_goes_on(workers):
    def hang(number, context):
        context.state["seen"] = MetricRecord({"n": 1})
        while number == 2:
            pass

    grid = LocalGrid(app_of(hang), 5, workers=workers, timeout=0.8, raise_errors=True)
    with grid:
        replies = grid.send_and_receive(messages(5))
        assert values(replies) == [0, 1, None, 3, 4]
        assert replies[2].error.reason == "deadline: no reply within 0.8 s"
        assert grid.store.ids() == [0, 1, 3, 4]
        assert values(grid.send_and_receive(messages(2))) == [0, 1]
        assert len(grid.worker_pids) == workers


def test_a_block_past_its_deadline_is_run_client_by_client():
    class Slow(EWC):
        def load(self, model, down, state):
            super().load(model, down, state)
            if down.client_id == 4 and down.tick.round == 1:
                time.sleep(1.9)

    client = small_client(small_setting(num_clients=CLIENTS), **{**REMEMBERING, "kind": Slow})
    app = client_app_of(lambda _: client)
    with LocalGrid(app, CLIENTS, workers=2, timeout=0.6, cohort=3) as grid:
        loop = small_loop(FedAvg(**ALL), client, grid=grid)
        logs = [log for log, _ in loop.run(first_arrays(client.setting))]
    assert [r.client for r in logs[1].rejections] == [4]
    assert logs[1].rejections[0].kind == "late"
    assert not logs[2].rejections
    assert len(logs[2].cohort) == CLIENTS


def test_an_exception_names_its_client_and_its_place():
    def fail(number, _):
        if number == 1:
            raise KeyError("no such layer")

    grid = LocalGrid(app_of(fail), 3, workers=2, raise_errors=True)
    with grid, pytest.raises(KeyError, match="no such layer") as caught:
        grid.send_and_receive(messages(3))
    notes = "\n".join(caught.value.__notes__)
    assert "raised by client 1" in notes
    assert "in fail" in notes
    with LocalGrid(app_of(fail), 3, workers=2) as grid:
        replies = grid.send_and_receive(messages(3))
    assert values(replies) == [0, None, 2]
    assert "no such layer" in replies[1].error.reason


def test_an_exception_that_cannot_be_sent_is_told():
    class LocalError(Exception):
        pass

    def fail(*_):
        raise LocalError("odd")

    grid = LocalGrid(app_of(fail), 1, workers=2, raise_errors=True)
    with grid, pytest.raises(RuntimeError, match="LocalError: odd"):
        grid.send_and_receive(messages(1))


def test_a_grid_goes_on_after_an_exception():
    def fail(number, context):
        if number == 0 and len(context.state) == 0 and context.run_config["fail"]:
            raise ValueError("once")

    grid = LocalGrid(app_of(fail), 6, workers=2, raise_errors=True, run_config={"fail": True})
    with grid:
        for _ in range(2):
            with pytest.raises(ValueError, match="once"):
                grid.send_and_receive(messages(6))
        assert values(grid.send_and_receive(messages(6)[1:])) == [1, 2, 3, 4, 5]


# ---- processes that stay behind ----------------------------------------------------------------


def test_closing_ends_every_process():
    grid = LocalGrid(app_of(lambda *_: None), 4, workers=3)
    grid.send_and_receive(messages(4))
    pids = grid.worker_pids
    assert len(pids) == 3
    assert all(map(lives, pids))
    grid.close()
    assert grid.worker_pids == []
    assert gone(pids)


SCRIPT = """
import os
from tests.fedsim.test_workers import LocalGrid, app_of, messages
def hang(number, context):
    os.write(1, f"{os.getpid()}\\n".encode())
    while True:
        pass
with LocalGrid(app_of(hang), 2, workers=2) as grid:
    grid.send_and_receive(messages(2))
"""


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_run(way):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    pids = [int(process.stdout.readline()) for _ in range(2)]
    assert all(map(lives, pids))
    if way == signal.SIGINT:  # a terminal sends it to all processes of the job
        os.killpg(process.pid, way)
    else:
        process.send_signal(way)
    assert process.wait(timeout=10) != 0
    assert gone(pids)
    process.stdout.close()


# ---- set-up ------------------------------------------------------------------------------------


def test_the_engine_counts_workers():
    assert LocalEngine(workers="auto").num_workers(1) == 1
    assert LocalEngine(workers=3).num_workers(1000) == 3
    assert LocalEngine().num_workers(1000) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "engine.workers"),
        ({"workers": True}, "engine.workers"),
        ({"workers": "many"}, "engine.workers"),
        ({"timeout": 0}, "engine.timeout"),
        ({"timeout": -1.0}, "engine.timeout"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        LocalEngine(**options)


def test_workers_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for options in ({"workers": 2}, {"timeout": 1.0}):
        with pytest.raises(ValueError, match=r"engine\.device=cuda"):
            LocalEngine(device="cuda", **options)
    assert LocalEngine(device="cuda", workers="auto").num_workers(10) == 1


@pytest.mark.parametrize("options", [{"workers": 0}, {"timeout": 0.0}])
def test_a_grid_needs_workers_and_time(options):
    with pytest.raises(ValueError, match="must be"):
        LocalGrid(ClientApp(), 1, **options)
