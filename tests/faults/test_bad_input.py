"""Configurations, data and folders that cannot work: one line, another exit code, nothing left."""

import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from fedsim.main import main
from tests.faults.catalogue import ENDED, REFUSED, SURVIVED, case, cases

TOY = ["dataset=toy", "dataset.train_examples=40"]
SMALL = ["clock.rounds_per_experience=1", "training.epochs=1", "num_clients=4", "progress=false"]


@pytest.fixture
def fedsim(tmp_path, monkeypatch, capsys):
    """The command in an empty folder: its exit code, its last words and the files it left."""

    def command(*words):
        home = tmp_path / "home"
        home.mkdir()
        monkeypatch.chdir(home)
        monkeypatch.setattr(sys, "argv", ["fedsim", *words])
        GlobalHydra.instance().clear()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            GlobalHydra.instance().clear()
        text = code if isinstance(code, str) else capsys.readouterr().err
        left = [p for p in home.rglob("*") if p.is_file() or home / "runs" in (p, *p.parents)]
        return (1 if isinstance(code, str) else code), text, left

    return command


OPTIONS = {
    "negative number of clients": (REFUSED, ["num_clients=-3"], "at least 1, got -3"),
    "no rounds": (REFUSED, ["clock.rounds_per_experience=0"], "must be at least 1"),
    "unknown option": (REFUSED, ["training.epoch=3"], "did you mean training.epochs"),
    "unknown choice": (REFUSED, ["strategy=fedavgg"], "did you mean fedavg"),
    "more clients than examples": (REFUSED, ["num_clients=500"], "the data has 40 training"),
    "no such device": (REFUSED, ["engine.device=toaster"], "toaster"),
    "a learning rate below zero": (REFUSED, ["optimizer.lr=-1"], "Invalid learning rate"),
    "a name that leads elsewhere": (REFUSED, ["name=../../evil"], "must be a plain name"),
    "a name with a folder": (REFUSED, ["name=a/b"], "must be a plain name"),
    "a hang without a timeout": (
        REFUSED, ["faults.hang=0.1", "++engine.timeout=null"], "needs engine.timeout"),
    "shares of faults above one": (REFUSED, ["faults.nan=0.7", "faults.inf=0.7"], "add up to 1.4"),
    "a fault for nobody": (REFUSED, ["faults.nan=[9]"], "no client 9 among 4"),
    "an unknown fault": (REFUSED, ["faults=unlucky"], "there is no faults=unlucky"),
    "an unknown gate policy": (REFUSED, ["gate.policy=ignore"], "reject, abort or clip"),
    "clipping to no norm": (REFUSED, ["gate=clip", "gate.max_norm=null"], "needs gate.max_norm"),
    "batch statistics of no batch norm": (
        REFUSED, ["batch_statistics=local"], "no batch normalisation"),
    "flipped labels of a graph": (
        REFUSED,
        ["dataset=karate_club", "scenario=graph", "partition=louvain", "backbone=gcn",
         "client=sgd", "num_clients=2", "faults=labelflip"],
        "not graphs"),
}  # fmt: skip


@cases(OPTIONS)
def test_option(case, fedsim):
    _, words, text = case
    data = [] if any(word.startswith("dataset=") for word in words) else TOY
    code, said, left = fedsim(*data, *SMALL, *words)
    assert code == 1
    assert said.startswith("fedsim: ")
    assert text in said
    assert "\n" not in said
    assert not left


@case(REFUSED)
def test_malformed_yaml(fedsim, tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nname: [unclosed\n  x: : y\n")
    code, said, left = fedsim("--config-dir", str(tmp_path / "conf"), "experiment=mine")
    assert (code, left) == (1, [])
    assert "malformed YAML" in said
    assert "mine.yaml" in said
    assert "\n" not in said


@case(REFUSED)
def test_a_data_folder_that_does_not_exist(fedsim, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("torchvision.datasets.MNIST.download", _no_network)
    code, said, left = fedsim("dataset=mnist", *SMALL)
    assert (code, left) == (1, [])
    assert "mnist not found" in said
    assert "set FEDSIM_DATA" in said


@case(REFUSED)
def test_a_data_folder_that_is_a_file(fedsim, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "file"))
    monkeypatch.setattr("torchvision.datasets.MNIST.download", _no_network)
    code, said, left = fedsim("dataset=mnist", *SMALL)
    assert (code, left) == (1, [])
    assert "mnist not found" in said


@case(REFUSED)
def test_a_data_file_cut_in_half(fedsim, monkeypatch, tmp_path):
    raw = tmp_path / "data" / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = (0x803).to_bytes(4) + (100).to_bytes(4) + (28).to_bytes(4) + (28).to_bytes(4)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(50 * 28 * 28))
        labels = (0x801).to_bytes(4) + (100).to_bytes(4) + bytes(100)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    code, said, left = fedsim("dataset=mnist", *SMALL)
    assert (code, left) == (1, [])
    assert "damaged or cut short" in said
    assert "\n" not in said


@case(REFUSED)
def test_a_run_folder_below_a_file(fedsim, tmp_path):
    (tmp_path / "file").write_text("")
    code, said, left = fedsim(*TOY, *SMALL, f"hydra.run.dir={tmp_path}/file/run")
    assert (code, left) == (1, [])
    assert said.startswith("fedsim: Not a directory")


@case(REFUSED)
def test_a_run_folder_that_is_taken(fedsim, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "rounds.jsonl").write_text("precious\n")
    code, said, _ = fedsim(*TOY, *SMALL, f"hydra.run.dir={taken}")
    assert code == 1
    assert "already holds a run" in said
    assert (taken / "rounds.jsonl").read_text() == "precious\n"


@case(SURVIVED)
def test_a_run_folder_beside_this_one(fedsim, tmp_path):
    """Where the user says, and nowhere else."""
    code, _, left = fedsim(*TOY, *SMALL, "client=sgd", "hydra.run.dir=../elsewhere")
    assert (code, left) == (0, [])
    assert (tmp_path / "elsewhere" / "summary.json").exists()


@case(ENDED)
def test_nobody_gives_a_result(fedsim):
    code, said, left = fedsim(*TOY, *SMALL, "client=sgd", "faults.nan=1")
    assert code == 1
    assert said.startswith("fedsim: round 1: 0 of 4 clients gave a usable result")
    names = {path.name for path in left}
    assert "rejections.jsonl" in names
    assert "summary.json" not in names


@case(SURVIVED)
def test_rubbish_and_attackers_of_all_kinds(fedsim):
    words = ["faults=rubbish", "faults.label_flip=[0]", "faults.sign_flip=[1]", "client=sgd"]
    code, _, left = fedsim(*TOY, *SMALL, *words, "num_clients=8")
    assert code == 0
    assert "summary.json" in {path.name for path in left}


def _no_network(*_):
    raise OSError("no network")
