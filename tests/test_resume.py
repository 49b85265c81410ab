"""An interrupted run that goes on measures what an uninterrupted one does, for every method."""

import csv
import json
import signal

import pytest

from fedsim.checkpoint_files import manifests
from fedsim.config import choices, compose, resolve
from fedsim.interruption import Interrupted
from fedsim.main import go_on, simulate
from fedsim.state import RoundStore

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["num_clients=3", "training.epochs=1", "training.batch_size=16", "progress=false"]
TOY = ["dataset=toy", "dataset.train_examples=96", "scenario.num_experiences=2"]
TOY += ["clock.rounds_per_experience=2"]
SEVEN = [*TOY, "num_clients=7", "dataset.train_examples=140"]
GRAPH = [
    "dataset=digits_graph", "scenario=graph", "backbone=gcn", "optimizer=adam",
    "partition=graph_random", "clock.rounds_per_experience=4",
]  # fmt: skip
KEYS = [
    "dataset=toy", "dataset.train_examples=96", "backbone=linear", "head=keyvalue_small",
    "client=dkvb", "scenario.num_experiences=2", "clock.rounds_per_experience=[3,2]",
]  # fmt: skip
MISSIONS = [
    "dataset=digits", "scenario=missions", "backbone=linear", "scenario.num_experiences=4",
    "clock.rounds_per_experience=1", "num_clients=3",
]  # fmt: skip

STRATEGIES = {
    "bulyan": SEVEN,
    "krum": SEVEN,
    "multikrum": [*SEVEN, "strategy.num_nodes_to_select=3"],
    "fedprox": [*TOY, "client=fedprox"],
    "fedper": [*TOY, "client=fedper"],
    "local": [*TOY, "client=local", "participation=0.67"],
    "fedproto": [*TOY, "client=fedproto", "strategy.momentum=0.5"],
    "icarl": [*TOY, "client=icarl", "strategy.merging.training.epochs=1", "strategy.budget=20"],
    "prototypes": [*MISSIONS, "client=prototypes"],
    "dkvb": KEYS,
    "dkvb_fitted": [*KEYS, "strategy.keys.rounds=2"],
    "dkvb_unlearning": [*KEYS, "strategy.keys.rounds=2", "strategy.unlearning.pairs=4"],
    "fedpub": [*GRAPH, "client=fedpub", "participation=0.67"],
    "gcfl": [*GRAPH, "client=sgd", "num_clients=5", "strategy.warmup=0", "strategy.smallest=2"],
    "fedgnn": [*GRAPH, "client=fedgnn"],
    "fedsage": [*GRAPH, "client=fedsage", "strategy.steps=1", "client.generation.epochs=2"],
}
CLIENTS = {
    "ewc": [*TOY, "client=ewc"],
    "ewc online": [*TOY, "client=ewc", "client.mode=online", "client.decay=0.5"],
    "replay": [*TOY, "client=replay", "client.memory=12", "client.replay_batch=4"],
    "probe": [*TOY, "client=probe", "backbone=linear"],
    "adam that is kept": [*TOY, "optimizer=adam", "training.keep_optimizer=true"],
    "dkvb_uniform": [
        *KEYS, "client=dkvb_uniform", "client.public.count=200", "dataset=ring",
        "head=keyvalue_toy", "strategy=dkvb", "dataset.train_examples=null",
    ],
    "states on disk": [*TOY, "client=ewc", "engine.keep_states=1"],
    "staggered": [*TOY, "client=ewc", "clock=staggered", "clock.max_shift=1", "order=shuffled"],
    "late": [*TOY, "client=replay", "clock=late", "clock.latest_join=2", "participation=0.67"],
    "mode local": [*TOY, "client=ewc", "mode=local"],
    "mode central": [*TOY, "client=ewc", "mode=central"],
    "best validation": [
        *GRAPH, "client=fedpub", "strategy=fedpub", "evaluation.selection=best_validation",
        "evaluation.when=after_training",
    ],
    "loggers": [*TOY, "logger=csv"],
}  # fmt: skip
CLIENTS["dkvb_uniform"] = [
    o for o in CLIENTS["dkvb_uniform"] if not o.startswith(("dataset.train", "dataset=toy"))
]
AVALANCHE = [name for name in choices("client") if name.startswith("avalanche_")]
CASES = {
    **{s: [*STRATEGIES.get(s, [*TOY, "client=sgd"]), f"strategy={s}"] for s in choices("strategy")},
    **CLIENTS,
    **{c: [*TOY, f"client={c}", "num_clients=2"] for c in AVALANCHE},
}
CASES["avalanche_rwalk"].append("training.batch_size=2")  # it needs steps enough to be finite


def node_of(*overrides):
    last = {o.split("=", 1)[0]: o for o in (*SMALL, *overrides)}
    return resolve(compose(list(last.values())))


def measured(folder):
    """Everything a run measures, without times."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").open()]
    summary = json.loads((folder / "summary.json").read_text())
    found = {
        "rows": (folder / "rows.jsonl").read_text(),
        "rejections": (folder / "rejections.jsonl").read_text(),
        "rounds": [timeless(row) for row in rounds],
        "summary": timeless(summary),
    }
    if (folder / "matrices.jsonl").exists():
        found["matrices"] = (folder / "matrices.jsonl").read_text()
    if (folder / "metrics.csv").exists():
        with (folder / "metrics.csv").open() as file:
            lines = list(csv.DictReader(file))
        found["csv"] = [timeless(line) for line in lines]
    return found


def timeless(row):
    """The row without its seconds."""
    return {
        key: timeless(value) if isinstance(value, dict) else value
        for key, value in row.items()
        if "seconds" not in key and not f"{key}_".count("_s_")
    }


def interrupt(monkeypatch, *, after, busy=1):
    """Interrupt a run in the round after the given one, once so many clients have been at work."""
    rounds, looks = [], []
    commit, get = RoundStore.commit, RoundStore.get

    def counted(store):
        rounds.append(store)
        commit(store)

    def interrupted(store, client_id):
        if len(rounds) == after + 1:  # the untrained model counts
            looks.append(client_id)
            if len(looks) == busy + 1:
                raise Interrupted(signal.SIGINT)
        return get(store, client_id)

    monkeypatch.setattr(RoundStore, "commit", counted)
    monkeypatch.setattr(RoundStore, "get", interrupted)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(case, tmp_path, monkeypatch):
    node = node_of(*CASES[case])
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    simulate(node, whole, started=0.0)
    with monkeypatch.context() as patch:
        interrupt(patch, after=2, busy=0 if node["mode"] == "central" else 1)
        with pytest.raises(KeyboardInterrupt) as caught:
            simulate(node, parted, started=0.0)
    assert "go on after round 2 with: fedsim resume=" in caught.value.__notes__[0]
    assert [path.name for path in manifests(parted)] == ["round-000002.json"]
    assert not (parted / "summary.json").exists()
    assert go_on(parted, ["progress=false"])
    assert measured(parted) == measured(whole)
    assert not (parted / "checkpoints").exists()
