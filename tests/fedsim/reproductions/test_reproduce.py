import json
import math
import signal

import pytest

from fedsim import reproduce
from fedsim.interruption import Interrupted
from fedsim.reproduce import Check, Runner, known, mean, show
from fedsim.state import RoundStore


def runner(tmp_path, summaries, seeds=(0, 1)):
    """A runner whose simulations are answered from a table, and the calls it made."""
    calls = []

    def simulate(node, run_dir):
        calls.append(node)
        run_dir.mkdir(parents=True)
        (run_dir / "summary.json").write_text(json.dumps(summaries(node)))
        return summaries(node)

    return Runner(folder=tmp_path, seeds=seeds, simulate=simulate), calls


def test_a_finished_run_is_read_and_not_repeated(tmp_path):
    made, calls = runner(tmp_path, lambda _: {"test_accuracy": 0.5})
    assert made.run("seed=1") == made.run("seed=1") == {"test_accuracy": 0.5}
    made.run("seed=2")
    assert [node["seed"] for node in calls] == [1, 2]
    made.run("seed=2", "training.epochs=7")  # another configuration is another run
    assert len(calls) == 3


def test_an_interrupted_run_goes_on_from_its_last_round(tmp_path, monkeypatch):
    words = [
        "dataset=toy", "dataset.train_examples=96", "scenario.num_experiences=2", "client=sgd",
        "clock.rounds_per_experience=2", "training.epochs=1", "num_clients=3", "checkpoint.every=1",
    ]  # fmt: skip
    looks = []
    genuine = RoundStore.get

    def get(store, client_id):
        looks.append(client_id)
        if len(looks) == stop:
            raise Interrupted(signal.SIGINT)
        return genuine(store, client_id)

    monkeypatch.setattr(RoundStore, "get", get)
    made = [
        Runner(folder=tmp_path / name, seeds=(0,), simulate=reproduce._simulate)
        for name in ("whole", "parted")
    ]
    stop = 0
    whole = made[0].run(*words)
    every, looks[:] = len(looks), []
    stop = every - 1
    with pytest.raises(KeyboardInterrupt):
        made[1].run(*words)
    looks[:], stop = [], 0
    assert made[1].run(*words)["digest"] == whole["digest"]
    assert 0 < len(looks) < every / 2, "only the last round was made again"


def test_every_seed_is_a_run_and_means_are_over_them(tmp_path):
    made, calls = runner(tmp_path, lambda node: {"x": node["seed"]})
    summaries = made.over_seeds("num_clients=2")
    assert [(node["num_clients"], node["seed"]) for node in calls] == [(2, 0), (2, 1)]
    assert mean(summaries, "x") == 0.5
    assert math.isnan(mean(summaries, "absent"))


def test_only_claims_that_fail_are_counted(capsys):
    checks = [
        Check(claim="c", wanted="w", ours="o", holds=holds) for holds in (True, False, None, False)
    ]
    assert show("name", iter(checks)) == 2
    shown = capsys.readouterr()
    assert "FAILS" in shown.out
    assert "1 hold, 2 fail, 1 are only reported" in shown.out
    assert shown.err.splitlines() == [
        "c: o (wanted: w) holds", "c: o (wanted: w) FAILS", "c: o (wanted: w)",
        "c: o (wanted: w) FAILS",
    ]  # fmt: skip


def test_brackets_are_text_and_no_markup(capsys):
    show("name", iter([Check(claim="a[x]", wanted="b", ours="c[/y]", holds=None)]))
    shown = capsys.readouterr().out
    assert "a[x]" in shown
    assert "c[/y]" in shown


@pytest.mark.parametrize(
    "words",
    [["--seeds", "2", "seed=3", "num_clients=4"], ["seed=3", "num_clients=4", "--seeds", "2"]],
)
def test_overrides_may_stand_before_and_behind_options(words, tmp_path, monkeypatch):
    seen = []

    def shown(name, checks):
        del checks
        seen.append(name)
        return 0

    class Made(Runner):
        def __init__(self, **options):
            seen.append((list(options["seeds"]), list(options["extra"])))
            super().__init__(**options)

    monkeypatch.setattr(reproduce, "show", shown)
    monkeypatch.setattr(reproduce, "Runner", Made)
    monkeypatch.setattr("sys.argv", ["x", "fedpub", "--folder", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert seen == [([0, 1], ["seed=3", "num_clients=4"]), "fedpub"]


def test_an_unknown_name_is_told_the_known_ones(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fedsim-reproduce", "nothing"])
    with pytest.raises(SystemExit, match="fedrecon"):
        reproduce.main()
    assert "fedrecon" in known()
