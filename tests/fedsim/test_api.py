"""Runs from Python."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import fedsim
from fedsim.arrays import to_record
from fedsim.build import build
from fedsim.checks import ConfigError
from fedsim.metrics import forgetting, worst_decile
from fedsim.results import digest

WORDS = (
    "dataset=toy dataset.train_examples=240 num_clients=4 training.epochs=1 client=sgd"
    " scenario.num_experiences=3 clock.rounds_per_experience=2 clock.evaluate_every=1"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedsim.run(WORDS, folder=tmp_path_factory.mktemp("api") / "run")


def test_what_a_run_measured_is_what_its_summary_says(run):
    assert run.accuracy.iloc[-1] == pytest.approx(run.summary["test_accuracy"])
    assert forgetting(run.matrix) == pytest.approx(run.summary["forgetting"])
    assert worst_decile(run.clients) == pytest.approx(run.summary["worst_decile_accuracy"])
    assert list(run.accuracy.index) == list(range(7))
    assert run.rounds["upload_bytes"].sum() == run.summary["upload_bytes"]
    assert len(run.rejections) == 0


def test_runs_of_one_second_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS.split(), "clock.rounds_per_experience=1"]
    paths = [fedsim.run(words).path for _ in range(3)]
    assert len({*paths}) == 3
    assert all(fedsim.load(path).finished for path in paths)


def test_personal_models_are_judged_by_the_clients(tmp_path):
    run = fedsim.run([*WORDS.split(), "strategy=local", "client=local"], folder=tmp_path / "run")
    assert run.summary["model"] == "personal"
    assert run.judged["client"].notna().all()
    assert run.accuracy.iloc[-1] == pytest.approx(run.summary["test_accuracy"])


def test_a_run_is_opened_again(run):
    again = fedsim.load(run.path)
    assert again.summary == run.summary
    assert np.array_equal(again.matrix, run.matrix)
    assert again.config["num_clients"] == 4
    with pytest.raises(FileNotFoundError, match="no config"):
        fedsim.load(run.path / "nowhere")


def test_the_command_repeats_the_run(run):
    assert run.command == f"fedsim {WORDS}"
    assert run.choices["client"] == "sgd"


def test_an_interrupted_run_shows_what_it_had(run, tmp_path):
    lines = (run.path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(lines[: len(lines) // 2])  # cut within a line
    (tmp_path / "config.yaml").write_text((run.path / "config.yaml").read_text())
    part = fedsim.load(tmp_path)
    assert not part.finished
    assert 0 < len(part.rows) < len(run.rows)
    assert part.accuracy.iloc[0] == run.accuracy.iloc[0]


@pytest.mark.parametrize("what", ["accuracy", "matrix", "clients", "cut", "timeline"])
def test_runs_draw_themselves(run, tmp_path, what):
    plot = getattr(run, f"plot_{what}")()
    plot.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert plot.svg().startswith("<svg")


def test_accuracy_can_be_drawn_against_what_it_cost(run):
    assert run.plot_accuracy("bytes").name == "accuracy-bytes"
    with pytest.raises(ValueError, match="rounds, bytes, seconds"):
        run.plot_accuracy("euros")


def test_mistakes_are_told_as_on_the_command_line():
    with pytest.raises(ConfigError, match=r"did you mean training\.epochs"):
        fedsim.run("trainin.epochs=1")


def test_importing_fedsim_is_light():
    code = (
        "import sys, fedsim, fedsim.report.command, fedsim.api; fedsim.load;"
        " print('torch' in sys.modules, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_numbers_between_clients_are_drawn(tmp_path):
    lines = [
        {"name": "similarity", "round": r, "clients": [0, 2], "values": [[1, r / 10], [r / 10, 1]]}
        for r in (1, 2)
    ]
    (tmp_path / "matrices.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    run = fedsim.load(tmp_path)
    assert run.pairs == [lines[1]]
    assert [plot.title for plot in run.plot_pairs()] == ["Similarity"]


def test_the_trained_model_is_kept(run):
    """Its accuracy is the run's, and its bytes are those that the digest was taken of."""
    record = to_record(run.weights)
    assert digest(record) == run.summary["digest"]
    model = run.model()
    assert not model.training
    scenario = build(run.config).setting.scenario
    parts = [scenario.shard(None, e, "test") for e in range(3)]
    inputs, targets = (torch.cat([getattr(p, n) for p in parts]) for n in ("inputs", "targets"))
    right = (model(inputs).argmax(1) == targets).float().mean()
    assert float(right) == pytest.approx(run.summary["test_accuracy"])


def test_a_server_without_a_model_says_so(tmp_path):
    words = "experiment=fedrecon_digits scenario.num_experiences=2"
    done = fedsim.run(words, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="holds no whole model: it has no"):
        done.model()
    assert done.weights


def test_models_of_unknown_classes_are_not_built(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("fedsim.backbones", "elsewhere.backbones"))
    with pytest.raises(ConfigError, match="trust=true"):
        fedsim.load(copy).model()
