"""What checkpoints hold, when they are written, and which are refused."""

import hashlib
import json
import os
import pickle
import shutil
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from safetensors.torch import load, save

from fedsim import checkpoint_files
from fedsim.api import resume
from fedsim.arrays import to_params, to_record
from fedsim.checkpoint import Checkpoints, Schedule
from fedsim.checkpoint_files import CheckpointError, manifests, read_part, write_part
from fedsim.checkpoint_origin import find
from fedsim.checks import ConfigError
from fedsim.codec import SKELETON
from fedsim.interruption import Interrupted, Interruption
from fedsim.main import go_on, simulate
from fedsim.progress import ProgressBar
from fedsim.results import Results
from fedsim.resumption import RunStoppedError
from fedsim.server_memory import FORMS, encoded, memory_of, packages_of, set_memory
from fedsim.state import ClientState, MemoryStore
from tests.test_resume import TOY, measured, node_of

NODE = node_of(*TOY, "client=ewc", "checkpoint.every=1")
VERSIONS = {"torch": "1"}


class Grid:
    """The part of a grid that checkpoints look at."""

    def __init__(self):
        self.store = MemoryStore()


def written(folder, *, rounds=2, changed=((0, 1), (1,)), schedule=None, strategy=None):
    """Checkpoints of a run in which some clients' states change in every round."""
    results = Results(folder, personal=False, overwrite=True)
    kept = Checkpoints(
        folder,
        schedule or Schedule(every=1),
        node={"engine": {}},
        versions=VERSIONS,
        interruption=Interruption(),
    )
    grid = Grid()
    kept.attach(grid, strategy or FedAvg())
    for round_ in range(rounds + 1):
        for client in changed[round_ - 1] if round_ else ():
            records = grid.store.get(client) or RecordDict()
            ClientState(records)["w"] = {"a": torch.full((3,), float(10 * round_ + client))}
            grid.store.put(client, records)
        kept.note(round_, to_record({"m": torch.full((2,), float(round_))}), results, 1.5 * round_)
    return kept


def resumed(folder, strategy=None):
    """A fresh grid and strategy to which the newest checkpoint was given."""
    start = find(folder, {"engine": {}}, VERSIONS)
    grid, strategy = Grid(), strategy or FedAvg()
    kept = Checkpoints(
        folder, Schedule(every=1), node={"engine": {}}, versions=VERSIONS,
        interruption=Interruption(), start=start,
    )  # fmt: skip
    return kept.attach(grid, strategy), grid, strategy


def states(grid):
    return {c: ClientState(grid.store.get(c))["w"]["a"].tolist() for c in grid.store.ids()}


def test_what_was_written_comes_back(tmp_path):
    written(tmp_path)
    earlier, grid, _ = resumed(tmp_path)
    assert (earlier.round, earlier.wall_s) == (2, 3.0)
    assert to_params(earlier.arrays)["m"].tolist() == [2.0, 2.0]
    assert states(grid) == {0: [10.0] * 3, 1: [21.0] * 3}


def test_only_changed_states_are_written_again(tmp_path):
    everybody = tuple(range(6))
    written(tmp_path, rounds=3, changed=(everybody, (4,), (4, 5)))
    newest = json.loads(manifests(tmp_path)[0].read_text())
    assert [part["ids"] for part in newest["clients"]] == [[0, 1, 2, 3, 4, 5], [4, 5]]
    assert states(resumed(tmp_path)[1]) == {
        **{c: [10.0 + c] * 3 for c in range(4)},
        4: [34.0] * 3,
        5: [35.0] * 3,
    }


def test_outdated_files_do_not_pile_up(tmp_path):
    changed = (tuple(range(6)), *((round_ % 6,) for round_ in range(20)))
    written(tmp_path, rounds=21, changed=changed, schedule=Schedule(every=1, keep=1))
    newest = json.loads(manifests(tmp_path)[0].read_text())
    assert sum(len(part["ids"]) for part in newest["clients"]) <= 12
    names = {part["file"] for part in newest["clients"]} | {newest["server"]["file"]}
    found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert found == names | {"round-000021.json"}


def test_a_round_that_is_dropped_leaves_no_trace(tmp_path):
    kept = written(tmp_path)
    store = kept._store
    ClientState(store.get(0)).set_count("n", 7)
    changed = store.get(0)
    ClientState(changed)["w"] = {"a": torch.zeros(3)}
    store.put(0, changed)
    assert ClientState(store.kept(0))["w"]["a"].tolist() == [10.0] * 3
    assert ClientState(store.kept(0)).count("n") == 0


def test_as_many_are_kept_as_asked_for(tmp_path):
    written(tmp_path, rounds=4, changed=((0,),) * 4, schedule=Schedule(every=1, keep=3))
    assert [p.stem for p in manifests(tmp_path)] == [f"round-00000{n}" for n in (4, 3, 2)]


def test_without_any_nothing_is_written(tmp_path):
    written(tmp_path, schedule=Schedule(every=1, keep=0))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("every", "found"), [(2, [2]), (None, [])])
def test_rounds_between_two(tmp_path, every, found):
    kept = written(tmp_path, rounds=3, changed=((0,),) * 3, schedule=Schedule(every=every))
    assert [int(p.stem[6:]) for p in manifests(tmp_path)] == found
    assert kept.save() == 3, "one more when the run is interrupted"
    assert int(manifests(tmp_path)[0].stem[6:]) == 3


def test_auto_stays_below_its_share(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fedsim.checkpoint.time.perf_counter", lambda: clock[0])
    genuine, spent = Checkpoints.save, []

    def save(self):
        clock[0] += 0.5
        spent.append(0.5)
        return genuine(self)

    monkeypatch.setattr(Checkpoints, "save", save)
    kept = written(tmp_path, rounds=1, changed=((0,),), schedule=Schedule(share=0.1))
    for round_ in range(2, 200):
        clock[0] += 1.0
        kept.note(round_, to_record({"m": torch.zeros(2)}), kept._results, 0.0)
    assert 0.08 * clock[0] < sum(spent) <= 0.1 * clock[0] + 0.5  # the first one's cost is a guess


def test_a_schedule_says_what_is_wrong():
    for wrong in ({"every": 0}, {"every": "often"}, {"share": 1.0}, {"keep": -1}):
        with pytest.raises(ValueError, match=f"checkpoint.{next(iter(wrong))}"):
            Schedule(**wrong)


# ---- what strategies remember ------------------------------------------------------------------


def aged(strategy):
    """A strategy that remembers something."""
    for name, value in {
        "m_t": {"a": np.full((2, 1), 0.1)},
        "momentum_vector": [np.arange(3.0), np.float64(0.5)],
        "current_arrays": to_record({"a": torch.ones(2)}),
    }.items():
        if hasattr(strategy, name):
            setattr(strategy, name, value)
    return strategy


@pytest.mark.parametrize("kind", [FedAdam, FedAvgM])
def test_flowers_strategies_get_their_moments_back(tmp_path, kind):
    written(tmp_path, strategy=aged(kind()))
    _, _, back = resumed(tmp_path, kind())
    assert type(back.current_arrays) is ArrayRecord
    assert back.current_arrays["a"].numpy().tolist() == [1.0, 1.0]
    if kind is FedAdam:
        assert back.m_t["a"].tolist() == [[0.1], [0.1]]
        assert back.m_t["a"].dtype == np.float64
    else:
        assert [v.tolist() for v in back.momentum_vector] == [[0.0, 1.0, 2.0], 0.5]


def test_a_strategy_inside_another_is_remembered_too():
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as Private

    def build():
        return Private(aged(FedAdam()), 1.0, 0.5, 2)

    outer = build()
    outer.clipping_norm = 0.25
    outer.strategy.v_t = {"a": np.full(2, 7.0)}
    content = encoded({"memory": memory_of(outer)}, frozenset(), "outer")
    fresh = Private(FedAdam(), 1.0, 0.5, 2)
    from fedsim.codec import Decoder

    decoder = Decoder(FORMS, {}, frozenset(), content)
    set_memory(fresh, decoder.value(decoder.root())["memory"])
    assert fresh.clipping_norm == 0.25
    assert fresh.strategy.v_t["a"].tolist() == [7.0, 7.0]
    assert callable(fresh.strategy.train_metrics_aggr_fn)


def test_a_strategy_that_cannot_be_written_down_says_so(tmp_path, capsys):
    strategy = FedAvg()
    strategy.model = torch.nn.Linear(2, 2)
    written(tmp_path, strategy=strategy)
    said = capsys.readouterr().err
    assert "cannot be resumed" in said
    assert "FedAvg['model']" in said
    assert len(said.splitlines()) == 1
    assert not manifests(tmp_path)


def test_an_engine_that_keeps_states_to_itself_says_so(tmp_path, capsys):
    kept = Checkpoints(
        tmp_path, Schedule(), node={}, versions={}, interruption=Interruption()
    )  # fmt: skip
    assert kept.attach(object(), FedAvg()) is None
    assert "this engine does not show what clients remember" in capsys.readouterr().err
    kept.note(1, to_record({}), None, 0.0)
    assert kept.save() is None


# ---- what is refused ---------------------------------------------------------------------------


def damage(folder, how, newest=0):
    manifest = manifests(folder)[newest]
    server = manifest.parent / json.loads(manifest.read_text())["server"]["file"]
    if how == "manifest cut off":
        manifest.write_bytes(manifest.read_bytes()[:-40])
    elif how == "manifest changed":
        manifest.write_text(manifest.read_text().replace('"wall_s": 3.0', '"wall_s": 4.0'))
    elif how == "part cut off":
        server.write_bytes(server.read_bytes()[:-1])
    elif how == "part changed":
        content = bytearray(server.read_bytes())
        content[-1] ^= 1
        server.write_bytes(content)
    elif how == "part missing":
        server.unlink()
    elif how == "results lost":
        os.truncate(folder / "rounds.jsonl", 0)


HOWS = ["manifest cut off", "manifest changed", "part cut off", "part changed", "part missing"]


@pytest.mark.parametrize("how", HOWS)
def test_the_previous_one_serves_if_the_newest_is_damaged(tmp_path, capsys, how):
    written(tmp_path)
    damage(tmp_path, how)
    earlier, grid, _ = resumed(tmp_path)
    assert earlier.round == 1
    assert states(grid) == {0: [10.0] * 3, 1: [11.0] * 3}
    said = capsys.readouterr().err
    assert "the checkpoint after round 2 is damaged" in said
    assert "going on after round 1" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("how", HOWS)
def test_damaged_ones_are_refused(tmp_path, how):
    written(tmp_path, schedule=Schedule(every=1, keep=1))
    damage(tmp_path, how)
    with pytest.raises(CheckpointError, match=r"round 2 is damaged: .*; there is no other one"):
        resumed(tmp_path)


def test_foreign_ones_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(CheckpointError, match=r"another configuration \(seed differ\)"):
        find(tmp_path, {"engine": {}, "seed": 3}, VERSIONS)
    with pytest.raises(CheckpointError, match="written with torch 1, this is 2"):
        find(tmp_path, {"engine": {}}, {"torch": "2"})
    assert find(tmp_path, {"engine": {"workers": 3}, "progress": False}, VERSIONS)["round"] == 2
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find(tmp_path / "elsewhere", {}, {})


def test_another_methods_memory_is_refused(tmp_path):
    written(tmp_path, strategy=aged(FedAdam()))
    start = find(tmp_path, {"engine": {}}, VERSIONS)
    path = tmp_path / "checkpoints" / start["server"]["file"]
    params = encoded({"strategy": {"aggregate_train": 1}, "arrays": to_record({})}, frozenset(), "")
    forge(tmp_path, path, save(params))
    with pytest.raises(CheckpointError, match="is no checkpoint of this method"):
        resumed(tmp_path)


# ---- what somebody may have put there ----------------------------------------------------------


def forge(folder, path, content):
    """Put other content into a checkpoint, with sizes and sums that fit."""
    path.write_bytes(content)
    manifest = manifests(folder)[0]
    whole = json.loads(manifest.read_text())
    for entry in [whole["server"], *whole["clients"]]:
        if entry["file"] == path.name:
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    whole.pop("checksum")
    whole["checksum"] = checkpoint_files._checksum(whole)
    manifest.write_text(json.dumps(whole))


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def skeleton(root):
    """A file whose skeleton is this; a text stands for itself."""
    text = root if isinstance(root, str) else json.dumps(root)
    return save({SKELETON: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})


@dataclass
class Innocent:
    """A data class whose constructor would be noticed."""

    x: int

    def __post_init__(self):
        raise AssertionError("a constructor ran")


CRAFTED = {
    "a pickle": pickle.dumps(Payload()),
    "no tensors": b"{}",
    "a header larger than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a name of a function": skeleton(["dataclass", 0, "os:system", []]),
    "a name of a class": skeleton(["dataclass", 0, "subprocess:Popen", []]),
    "a module that was not imported": skeleton(["dataclass", 0, "antigravity:x", []]),
    "another package's data class": skeleton(["dataclass", 0, f"{__name__}:Innocent", [["x", 1]]]),
    "an unknown tag": skeleton(["call", 0, "os.system"]),
    "a type that is a function": skeleton(["tensor", 0, SKELETON, "tensor", "load", "cpu", False]),
    "too deep": skeleton("[" * 100_000),
    "no mapping": skeleton([]),
    "a skeleton that is no JSON": save({SKELETON: torch.tensor([1, 2], dtype=torch.uint8)}),
}


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    written(folder)
    start = find(folder, {"engine": {}}, VERSIONS)
    forge(folder, folder / "checkpoints" / start["server"]["file"], content)
    with pytest.raises(CheckpointError):
        resumed(folder)
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_is_read_once(tmp_path):
    """Else a small file could ask for any amount of memory."""
    node = ["tensor", 1, "t0", "tensor", "float32", "cpu", False]
    text = json.dumps(["sequence", 0, "list", [node, node]]).encode()
    params = {"t0": torch.zeros(4), SKELETON: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    path = tmp_path / "server-000001.safetensors"
    write_part(path, params)
    with pytest.raises(CheckpointError, match="twice"):
        read_part(path, FORMS, frozenset())


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "server-000001.safetensors/.."])
def test_names_do_not_lead_out_of_the_folder(tmp_path, name):
    written(tmp_path, schedule=Schedule(every=1, keep=1))
    manifest = manifests(tmp_path)[0]
    whole = json.loads(manifest.read_text())
    whole["server"]["file"] = name
    whole.pop("checksum")
    manifest.write_text(json.dumps({**whole, "checksum": checkpoint_files._checksum(whole)}))
    with pytest.raises(CheckpointError, match="is no name of a checkpoint's file"):
        resumed(tmp_path)


def test_links_out_of_the_run_directory_are_not_written_through(tmp_path):
    folder = interrupted(tmp_path)
    outside = tmp_path / "outside"
    shutil.move(folder / "rows.jsonl", outside)
    before = outside.read_text()
    (folder / "rows.jsonl").symlink_to(outside)
    with pytest.raises(ConfigError, match="leads out of the run directory"):
        go_on(folder, [])
    assert outside.read_text() == before


def test_records_survive_exactly(tmp_path):
    state = RecordDict({"w": to_record({"a": torch.rand(2, dtype=torch.float64)})})
    state["counters"] = ConfigRecord({"n": 3, "x": 0.1, "s": "ä", "b": b"\x00", "l": [1, 2]})
    path = tmp_path / "clients-000001-000.safetensors"
    write_part(path, encoded({7: state}, frozenset(), "clients"))
    back = read_part(path, FORMS, frozenset())[7]
    assert dict(back["counters"]) == dict(state["counters"])
    assert torch.equal(to_params(back["w"])["a"], to_params(state["w"])["a"])
    assert set(load(path.read_bytes())) == {"t0", "t1", SKELETON}


def test_a_strategys_own_packages_are_known():
    assert {"fedsim", "flwr"} <= packages_of(FedAvg())
    assert "builtins" not in packages_of(FedAvg())


# ---- whole runs --------------------------------------------------------------------------------


def interrupted(tmp_path, node=NODE, after=2, error=None):
    """A run that was interrupted when a round was over."""
    folder = tmp_path / "run"
    genuine = ProgressBar.update

    def update(self, log, accuracy):
        genuine(self, log, accuracy)
        if log.tick.round == after + 1:
            raise error or Interrupted(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "update", update)
        with pytest.raises((KeyboardInterrupt, Exception)):
            simulate(node, folder, started=0.0)
    return folder


def test_resuming_twice_and_a_finished_run(tmp_path):
    folder = interrupted(tmp_path, after=1)
    assert (folder / "rounds.jsonl").read_text().count("\n") == 2, "a round more than is kept"
    run = resume(folder)
    assert run.summary["rounds"] == 4
    before = measured(folder)
    assert resume(folder).summary == run.summary
    assert not go_on(folder, [])
    assert measured(folder) == before


def test_a_run_that_fails_can_go_on_as_well(tmp_path):
    folder = interrupted(tmp_path, error=RuntimeError("a cable was pulled"))
    simulate(NODE, tmp_path / "whole", started=0.0)
    assert go_on(folder, [])
    assert measured(folder) == measured(tmp_path / "whole")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    genuine = checkpoint_files.write_whole

    def full(path, content):
        if path.name.startswith("clients-000003"):
            path.with_name(path.name + ".partial").write_bytes(content[:3])
            raise OSError(28, "No space left on device", str(path))
        return genuine(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_whole", full)
        with pytest.raises(RunStoppedError) as caught:
            simulate(NODE, folder, started=0.0)
    said = str(caught.value)
    assert "no room left on the disk (No space left on device" in said
    assert f"go on after round 2 with: fedsim resume={folder}" in said
    simulate(NODE, tmp_path / "whole", started=0.0)
    assert go_on(folder, [])
    assert measured(folder) == measured(tmp_path / "whole")


def test_a_disk_that_fills_up_under_the_results(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    genuine = Results.record

    def full(self, log, wall_s):
        if log.tick.round == 3:
            self._rows.write('{"round": 3, "half')
            self._rows.flush()
            raise OSError(28, "No space left on device")
        genuine(self, log, wall_s)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "record", full)
        with pytest.raises(RunStoppedError, match="after round 2"):
            simulate(NODE, folder, started=0.0)
    simulate(NODE, tmp_path / "whole", started=0.0)
    assert go_on(folder, [])
    assert measured(folder) == measured(tmp_path / "whole")


def test_lost_results_are_noticed(tmp_path):
    folder = interrupted(tmp_path)
    damage(folder, "results lost")
    with pytest.raises(CheckpointError, match=r"rounds.jsonl has lost lines"):
        go_on(folder, [])


def test_an_edited_configuration_is_refused(tmp_path):
    folder = interrupted(tmp_path)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(CheckpointError, match=r"another configuration \(.*seed differ\)"):
        go_on(folder, [])


def test_a_round_that_may_not_be_used_is_not_gone_on_from(tmp_path):
    from fedsim.checks import VoidRoundError

    node = node_of(*TOY, "client=sgd", "checkpoint.every=1", "faults.fail=1.0")
    with pytest.raises(VoidRoundError) as caught:
        simulate(node, tmp_path, started=0.0)
    assert "nothing to go on from" in caught.value.__notes__[-1]
    assert (tmp_path / "rounds.jsonl").read_text().count("\n") == 1, "it is on record"
    assert not manifests(tmp_path)
