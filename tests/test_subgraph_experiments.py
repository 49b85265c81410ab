"""The named runs on Cora's subgraphs: all of them compose, every method runs on another graph."""

import json

import pytest

from fedsim.config import choices, compose, resolve
from fedsim.main import simulate

METHODS = ("local", "fedavg", "fedprox", "fedper", "gcfl", "fedgnn", "fedsage", "fedpub")
PREAMBLE = {"fedsage": 40}  # rounds before the protocol's 100
PARTITIONS = {
    "disjoint": ("Metis", (5, 10, 20)),
    "overlapping": ("OverlappingMetis", (10, 30, 50)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", PARTITIONS)
def test_every_cell_of_the_table_has_an_experiment_by_the_official_protocol(method, kind):
    partition, sizes = PARTITIONS[kind]
    for size in sizes:
        name = f"{method}_cora_{kind}_{size}"
        node = resolve(compose([f"experiment={name}"]))
        assert node["name"] == name
        assert node["num_clients"] == size
        assert node["partition"]["_target_"] == f"scenarios.graph_partition.{partition}"
        assert node["dataset"]["names"] == ["Cora"]
        assert node["clock"]["rounds_per_experience"] == 100 + PREAMBLE.get(method, 0)
        assert PREAMBLE.get(method, 0) == 2 * node["strategy"].get("steps", 0)
        assert node["optimizer"]["lr"] == 0.01
        assert node["optimizer"]["weight_decay"] == 1e-6
        assert (
            node["training"] | {"epochs": 1, "batch_size": 0, "keep_optimizer": True}
            == (node["training"])
        )
        assert (node["evaluation"]["when"], node["evaluation"]["selection"]) == (
            "after_training",
            "best_validation",
        )
        if method == "fedpub":
            assert node["strategy"]["scale"] == (3.0 if kind == "disjoint" else 5.0)


@pytest.mark.parametrize("method", [*METHODS, "fedpub_sparse", "fedpub_dagnn"])
def test_another_data_set_moves_a_method_to_another_graph(tmp_path, method):
    overrides = [
        f"experiment={method}_cora_disjoint_10", "dataset=digits_graph", "num_clients=5",
        "clock.rounds_per_experience=3", "progress=false",
        *(["strategy.steps=1"] if method == "fedsage" else []),
    ]  # fmt: skip
    summary = simulate(resolve(compose(overrides)), tmp_path / "run", started=0.0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    chosen = [
        row for row in rows if row["round"] == summary["chosen_round"] and row["client"] is not None
    ]
    assert len(chosen) == 5
    mean = sum(row["accuracy"] for row in chosen) / 5
    assert summary["test_accuracy"] == pytest.approx(mean), "clients weigh the same"
    validation = {
        r: sum(x["val_accuracy"] for x in rows if x["round"] == r and x["client"] is not None) / 5
        for r in (1, 2, 3)
    }
    assert summary["val_accuracy"] == pytest.approx(max(validation.values()), abs=1e-4)
    assert summary["model"] == "personal"


def test_the_list_of_experiments_has_no_shared_parts():
    assert not any(name.startswith("subgraphs") for name in choices("experiment"))
