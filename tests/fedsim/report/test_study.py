"""Which runs belong together, and what differs between them."""

import pytest

from fedsim.report.study import differences, flat, in_words, study
from fedsim.sweep import note
from tests.fedsim.report.run_dirs import write_run


def sweep(tmp_path):
    for strategy in ("fedavg", "fedprox"):
        for alpha in (0.1, 100):
            for seed in (0, 1):
                write_run(
                    tmp_path / f"{strategy}-{alpha}-{seed}",
                    seed=seed, strategy=strategy, alpha=alpha,
                )  # fmt: skip
    return study([tmp_path])


def test_runs_that_differ_in_the_seed_only_are_one_group(tmp_path):
    found = sweep(tmp_path)
    assert len(found.runs) == 8
    assert len(found.groups) == 4
    assert all([r.config["seed"] for r in group.runs] == [0, 1] for group in found.groups)


def test_a_choice_stands_for_what_it_decides_and_copies_are_left_out(tmp_path):
    # strategy.mu and strategy._target_ follow from the choice; scenario.partition.alpha repeats
    assert set(sweep(tmp_path).varying) == {"strategy", "partition.alpha"}


def test_methods_and_scenarios_are_told_apart_in_words(tmp_path):
    found = sweep(tmp_path)
    assert set(found.scenarios) == {"alpha 0.1", "alpha 100"}
    assert found.methods == ["fedavg", "fedprox"]
    assert found.groups[0].label == "fedavg, alpha 0.1"


def test_without_known_choices_classes_name_what_differs(tmp_path):
    for strategy in ("fedavg", "fedprox"):
        folder = write_run(tmp_path / strategy, strategy=strategy)
        (folder / ".hydra" / "hydra.yaml").unlink()
    found = study([tmp_path])
    assert set(found.varying) == {"strategy._target_", "strategy.mu"}
    assert sorted(group.method for group in found.groups) == ["fedavg", "fedprox"]


def test_labels_hold_no_more_than_tells_methods_apart(tmp_path):
    write_run(tmp_path / "a", strategy="fedavg", accuracy=0.5)
    folder = write_run(tmp_path / "b", strategy="fedprox", accuracy=0.6)
    hydra = folder / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text().replace("client: sgd", "client: fedprox"))
    found = study([tmp_path])
    assert set(found.varying) == {"strategy", "client"}
    assert [group.method for group in found.groups] == ["fedavg", "fedprox"]


def test_a_value_that_depends_on_more_than_the_choice_is_kept(tmp_path):
    write_run(tmp_path / "a", strategy="fedavg", clients=3)
    write_run(tmp_path / "b", strategy="fedprox", clients=3)
    write_run(tmp_path / "c", strategy="fedprox", clients=5)
    runs = study([tmp_path]).runs
    assert set(differences(runs)) == {"strategy", "num_clients"}


def test_unfinished_runs_and_failed_jobs_are_told(tmp_path):
    write_run(tmp_path / "a")
    folder = write_run(tmp_path / "b", seed=1)
    (folder / "summary.json").unlink()
    note(tmp_path, {"event": "failed", "job": "c", "error": "no luck"})
    found = study([tmp_path])
    assert [run.path.name for run in found.unfinished] == ["b"]
    assert found.failures == (("c", "no luck"),)


def test_a_folder_without_a_finished_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        study([tmp_path])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        study([tmp_path / "nowhere"])


def test_keys_and_values_become_words():
    assert in_words("partition.alpha", "0.1") == "alpha 0.1"
    assert in_words("strategy", "fedavg") == "fedavg"
    assert in_words("num_clients", "50") == "clients 50"
    assert in_words("strategy._target_", "strategies.fedpub.FedPub") == "FedPub"
    assert flat({"a": {"b": 1, "c": None}}) == {"a.b": "1", "a.c": ""}
