import strategies.dkvb
from fedsim.reproductions import dkvb
from fedsim.reproductions.dkvb import Locality, changes
from fedsim.reproductions.dkvb_images import is_at_hand
from tests.fedsim.reproductions.test_reproduce import runner

TINY = [
    "experiment=dkvb_digits",
    "dataset=toy",
    "num_clients=2",
    "head.lookup.codebooks=4",
    "head.lookup.pairs=16",
    "strategy.keys.rounds=1",
    "clock.rounds_per_experience=[2,1]",
    "scenario.num_experiences=2",
]
LOCAL = Locality(strayed=0, frozen=True, touched=0.3)


def answers(ours, probe):
    def summaries(node):
        is_probe = node["client"]["_target_"] == "clients.probe.Probe"
        return {"test_accuracy": probe if is_probe else ours}

    return summaries


ALL = ("cifar10", "efficientnet_lite0", "mnist", "tiny_imagenet")


def verdicts(tmp_path, summaries, found=LOCAL, *, data=ALL):
    made, calls = runner(tmp_path, summaries)
    checks = dkvb.checks(made, locality=lambda *_: found, at_hand=data.__contains__)
    return [check.holds for check in checks], calls


def test_good_numbers_hold_and_every_run_can_be_composed(tmp_path):
    holds, calls = verdicts(tmp_path, answers(0.97, 0.2))
    assert False not in holds
    assert holds.count(True) == 5 + 1 + 8 + 4 + 4 + 4
    seeds = {node["seed"] for node in calls}
    assert seeds == {0, 1}
    assert {node["num_clients"] for node in calls} == {1, 5, 20}
    encoders = {str(node["dataset"].get("encoder", {}).get("_target_")) for node in calls}
    assert any("efficientnet_lite0" in name for name in encoders)
    assert any("fractal_encoder" in name for name in encoders)


def test_bad_numbers_fail(tmp_path):
    found = Locality(strayed=3, frozen=True, touched=0.3)
    holds, _ = verdicts(tmp_path, answers(0.6, 0.58), found)
    # what compares runs with one another still holds: order, all at once, clients
    assert holds.count(False) == 1 + 2 + 1 + 4 + 2


def test_what_is_not_at_hand_is_left_out(tmp_path):
    holds, calls = verdicts(tmp_path, answers(0.97, 0.2), data=())
    assert holds[-3:] == [None, None, None]
    assert len(holds) == 5 + 2 + 8 + 4 + 3
    names = {str(node["dataset"]) for node in calls}
    assert not any(word in name for name in names for word in ("cifar10", "mnist", "imagenet"))
    _, calls = verdicts(tmp_path / "c", answers(0.97, 0.2), data=("cifar10",))
    names = {str(node["dataset"].get("encoder", "")) for node in calls}
    assert any("fractal_encoder" in name for name in names)
    assert not any("efficientnet" in name for name in names)
    _, calls = verdicts(tmp_path / "b", answers(0.97, 0.2), data=("mnist",))
    names = {str(node["dataset"]) for node in calls}
    assert any("mnist" in name for name in names)
    assert not any("cifar10" in name for name in names)


def test_data_that_are_not_there_are_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert not is_at_hand("mnist")
    assert not is_at_hand("tiny_imagenet")


def test_a_run_changes_fetched_rows_only():
    found = changes(*TINY)
    assert found.strayed == 0
    assert found.frozen
    assert 0.0 < found.touched <= 1.0


def test_rows_and_keys_that_change_without_cause_are_seen(monkeypatch):
    merge = strategies.dkvb.merge_rows

    def straying(values, updates, how):
        merged = merge(values, [], how) + 1.0
        list(updates)
        return merged

    monkeypatch.setattr(strategies.dkvb, "merge_rows", straying)
    assert changes(*TINY).strayed > 0
