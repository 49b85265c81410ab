"""Run directories with made-up numbers, as a run would leave them."""

import json
from pathlib import Path

import numpy as np
import yaml

from fedsim.tables import write_parquet


def write_run(
    folder: Path,
    *,
    seed=0,
    strategy="fedavg",
    alpha=0.5,
    accuracy=0.8,
    clients=3,
    experiences=2,
    rounds=4,
    rejections=(),
):
    """A finished run whose test accuracy at the end is ``accuracy``."""
    (folder / ".hydra").mkdir(parents=True)
    config = {
        "name": "made",
        "seed": seed,
        "num_clients": clients,
        "participation": 1.0,
        "training": {"epochs": 2, "batch_size": 8},
        "client": {"_target_": "clients.sgd.SGD", "training": {"epochs": 2, "batch_size": 8}},
        "partition": {"_target_": "scenarios.partition.Dirichlet", "alpha": alpha},
        "scenario": {"partition": {"alpha": alpha}, "seed": seed},
        "strategy": {"_target_": f"x.{strategy}", "mu": 0.1 if strategy == "fedprox" else None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    choices = {"strategy": strategy, "partition": "dirichlet", "client": "sgd"}
    task = [f"strategy={strategy}", f"partition.alpha={alpha}", f"seed={seed}"]
    hydra = {"runtime": {"choices": choices}, "overrides": {"task": task}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    rows = _rows(accuracy, clients, experiences, rounds)
    _lines(folder / "rows.jsonl", rows)
    write_parquet(rows, folder / "rows.parquet")
    _lines(folder / "rounds.jsonl", [_round(r, experiences, rounds) for r in range(1, rounds + 1)])
    _lines(folder / "rejections.jsonl", rejections)
    summary = {
        "model": "global", "test_accuracy": accuracy, "test_accuracy_last": accuracy,
        "average_accuracy": accuracy, "average_incremental_accuracy": accuracy,
        "forgetting": 0.25 if experiences > 1 else None,
        "backward_transfer": -0.25 if experiences > 1 else None, "forward_transfer": None,
        "worst_decile_accuracy": accuracy - 0.1, "upload_bytes": 1000 * rounds,
        "download_bytes": 2000 * rounds, "rounds": rounds, "num_clients": clients,
        "seed": seed, "wall_s": 1.5, "setup_s": 0.5, "seconds_per_round": 1.5 / rounds,
        "rejected_updates": len(rejections), "digest": "ab" * 32,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    env = {"python": "3.11", "platform": "here", "versions": {"torch": "2.9"}, "commit": "c0ffee"}
    (folder / "env.json").write_text(json.dumps(env))
    (folder / "scenario.json").write_text(json.dumps(_cut(clients, experiences, rounds)))
    return folder


def _rows(accuracy, clients, experiences, rounds):
    rows = []
    for round_ in range(rounds + 1):
        time = max(round_ - 1, 0) * experiences // rounds if round_ else -1
        for client in (None, *range(clients)):
            for e in range(experiences):
                value = accuracy if round_ == rounds else 0.1
                lift = 0.0 if client is None else 0.02 * (client - (clients - 1) / 2)
                rows.append(
                    {
                        "round": round_, "experience": time, "client": client, "model": "global",
                        "eval_experience": e, "accuracy": float(np.clip(value + lift, 0, 1)),
                        "loss": 1.0, "num_examples": 10,
                    }
                )  # fmt: skip
    return rows


def _round(round_, experiences, rounds):
    return {
        "round": round_, "experience": (round_ - 1) * experiences // rounds, "step": 0,
        "wall_s": 0.25, "upload_bytes": 1000, "download_bytes": 2000, "train_loss": 1.0,
    }  # fmt: skip


def _cut(clients, experiences, rounds):
    facts = {
        "smallest_client": 5, "largest_client": 9, "classes_per_client": 2.5, "fewest_classes": 1,
        "label_skew": 0.4, "class_overlap": 0.5, "shared_examples": 0.0,
    }  # fmt: skip
    half = rounds // experiences
    return {
        "num_clients": clients, "num_experiences": experiences, "num_classes": 3,
        "num_rounds": rounds, "class_names": [], "labels": [[1, 2, 3]] * clients,
        "examples": [[3] * experiences] * clients, "test_examples": [4] * clients,
        "timeline": [[[1 + e * half, (e + 1) * half, e] for e in range(experiences)]] * clients,
        "experience_classes": [[e] for e in range(experiences)], "facts": facts,
    }  # fmt: skip


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
