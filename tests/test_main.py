"""The command, as a user runs it."""

import json
import subprocess
import sys

import pytest

from fedsim.checks import ConfigError
from fedsim.config import choices, compose, resolve
from fedsim.main import simulate

TOY = ["dataset=toy", "dataset.train_examples=240"]
SMALL = [
    "clock.rounds_per_experience=2",
    "training.epochs=1",
    "num_clients=4",
    "progress=false",
]


def run(tmp_path, *overrides, name="run"):
    data = [] if any(o.startswith("dataset=") for o in overrides) else TOY
    node = resolve(compose([*data, *SMALL, *overrides]))
    return simulate(node, tmp_path / name, started=0.0)


def command(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "fedsim.main", *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120,
    )  # fmt: skip


def rows(folder):
    return (folder / "rows.jsonl").read_text()


def test_a_run_leaves_every_file(tmp_path):
    summary = run(tmp_path)
    names = {
        "config.yaml",
        "env.json",
        "rows.jsonl",
        "rounds.jsonl",
        "rows.parquet",
        "model.safetensors",
        "summary.json",
    }
    assert names <= {p.name for p in (tmp_path / "run").iterdir()}
    wanted = {
        "test_accuracy", "test_accuracy_last", "model", "average_accuracy",
        "average_incremental_accuracy", "forgetting", "backward_transfer", "forward_transfer",
        "worst_decile_accuracy", "upload_bytes", "download_bytes", "rounds", "num_clients",
        "setup_s", "wall_s", "seconds_per_round", "rejected_updates", "digest",
    }  # fmt: skip
    assert wanted <= summary.keys()
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["versions"]["torch"]


def test_the_saved_configuration_repeats_the_run(tmp_path):
    from omegaconf import OmegaConf

    first = run(tmp_path)
    node = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml"))
    again = simulate(node, tmp_path / "again", started=0.0)
    assert again["digest"] == first["digest"]


def test_the_order_of_execution_does_not_show(tmp_path):
    first, second = run(tmp_path, name="a"), run(tmp_path, "engine.shuffle=true", name="b")
    assert first["digest"] == second["digest"]
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_client_states_on_disk_change_nothing(tmp_path):
    first, second = run(tmp_path, name="a"), run(tmp_path, "engine.keep_states=1", name="b")
    assert first["digest"] == second["digest"]


def test_another_seed_is_another_run(tmp_path):
    assert run(tmp_path, name="a")["digest"] != run(tmp_path, "seed=1", name="b")["digest"]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_second_process_gives_the_same_digest_and_rows(tmp_path, monkeypatch, threads):
    here = run(tmp_path, name="here")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    done = command(tmp_path, *TOY, *SMALL, "hydra.run.dir=there")
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert there["digest"] == here["digest"]
    assert rows(tmp_path / "there") == rows(tmp_path / "here")


def test_a_run_directory_is_not_overwritten(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match="overwrite=true"):
        run(tmp_path)
    run(tmp_path, "overwrite=true")


def test_replay_beats_the_naive_client(tmp_path):
    common = ["dataset=digits", "clock.rounds_per_experience=5"]
    common += ["training.epochs=3", "training.batch_size=8"]
    replay = run(tmp_path, *common, name="replay")
    naive = run(tmp_path, *common, "client=sgd", name="naive")
    assert replay["test_accuracy"] > naive["test_accuracy"] + 0.2
    assert naive["forgetting"] > replay["forgetting"] + 0.2


def test_replay_without_memory_is_the_naive_client(tmp_path):
    replay = run(tmp_path, "client.memory=0", name="replay")
    naive = run(tmp_path, "client=sgd", name="naive")
    assert replay["digest"] == naive["digest"]


SCENARIOS = [s for s in choices("scenario") if not s.startswith(("avalanche", "graph", "mission"))]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("clock", ["synchronous", "staggered", "late"])
def test_scenarios_clocks_and_orders_combine(tmp_path, scenario, clock):
    extra = ["clock.max_shift=1"] if clock == "staggered" else []
    extra += ["clock.latest_join=2"] if clock == "late" else []
    if scenario in SPECIAL:
        extra += SPECIAL[scenario]
    summary = run(tmp_path, f"scenario={scenario}", f"clock={clock}", "order=shuffled", *extra)
    assert summary["test_accuracy"] is not None


SPECIAL: dict[str, list[str]] = {}


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "quantity", "resampled"])
def test_partitions_run(tmp_path, partition):
    assert run(tmp_path, f"partition={partition}")["test_accuracy"] is not None


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedmedian", "multikrum"])
def test_strategies_run_by_name(tmp_path, strategy):
    extra = {"multikrum": ["strategy.num_nodes_to_select=2"], "fedprox": ["client=fedprox"]}
    run(tmp_path, f"strategy={strategy}", *extra.get(strategy, []))


def test_the_heterogeneity_sweep_compares_three_different_strategies(tmp_path):
    digests = {
        run(tmp_path / name, "sweep=heterogeneity", f"strategy={name}", "hydra.mode=RUN")["digest"]
        for name in ("fedavg", "fedprox", "fedadam")
    }
    assert len(digests) == 3


def test_loggers_get_the_numbers(tmp_path):
    run(tmp_path, "logger=csv")
    header, *lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "test_accuracy" in header
    assert len(lines) >= 10


def test_mistakes_end_in_one_line_without_a_run_directory(tmp_path):
    for arguments, words in (
        (["strategy=foo"], "choices: "),
        (["trainin.epochs=1"], "did you mean training.epochs"),
        (["num_clients=0"], "num_clients"),
        (["dataset=toy", "num_clients=500"], "partition=resampled"),
        (["scenario.num_experiences=11"], "10 classes"),
        (["clock.num_experiences=2"], "clock.num_experiences is 2"),
        (["backbone=lenet"], "at least 16x16"),
        (["strategy.fraction_trai=1"], "did you mean strategy.fraction_train"),
        (["strategy=fedprox"], "client=fedprox"),
    ):
        done = command(tmp_path, "hydra.run.dir=run", *arguments)
        assert done.returncode != 0
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_help_teaches_without_loading_torch(tmp_path):
    code = "import sys, fedsim.main; print('torch' in sys.modules, 'avalanche' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    text = command(tmp_path, "--help").stdout
    assert "strategy: " in text
    assert "fedsim -m" in text
    assert len(text.splitlines()) < 60


def test_a_sweep_runs_every_job(tmp_path):
    done = command(tmp_path, "-m", *TOY, *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2
