"""The claims about digits, through the whole simulator (method sheet, checks 4 to 6)."""

import time

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

PROBE = ["client=probe", "strategy=fedavg", "client.label_smoothing=0.1"]
AT_ONCE = ["scenario=single", "clock.rounds_per_experience=11"]


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """Final accuracy over all classes of a variant of the experiment; each is run once."""
    known = {}

    def run(*overrides):
        if overrides not in known:
            node = resolve(compose(["experiment=dkvb_digits", "progress=false", *overrides]))
            folder = tmp_path_factory.mktemp("run")
            known[overrides] = simulate(node, folder, started=time.perf_counter())
        return known[overrides]["test_accuracy"]

    return run


def test_class_incremental_is_as_good_as_all_at_once(accuracy):
    assert accuracy() >= 0.95
    assert accuracy(*AT_ONCE) - accuracy() <= 0.02


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_probe_knows_little_more_than_the_last_split(accuracy, head):
    probe = [f"head={head}", *PROBE, "clock.rounds_per_experience=1"]
    assert accuracy(*probe) <= 0.35


def test_the_linear_probe_learns_when_all_comes_at_once(accuracy):
    probe = ["head=linear", *PROBE, "scenario=single", "clock.rounds_per_experience=1"]
    assert accuracy(*probe) >= 0.85


def test_the_order_of_the_splits_does_not_matter(accuracy):
    forward = accuracy("scenario.class_order=[0,1,2,3,4,5,6,7,8,9]")
    backward = accuracy("scenario.class_order=[9,8,7,6,5,4,3,2,1,0]")
    assert abs(forward - backward) < 0.02


@pytest.mark.parametrize("merge", ["count_weighted", "sum", "fedavg"])
def test_five_clients_reach_what_one_reaches(accuracy, merge):
    assert abs(accuracy("num_clients=5", f"strategy.merge={merge}") - accuracy()) <= 0.02


def test_twenty_clients_reach_what_one_reaches(accuracy):
    assert abs(accuracy("num_clients=20") - accuracy()) <= 0.02


def test_clients_with_orders_and_times_of_their_own_reach_it_too(accuracy):
    own = [
        "num_clients=5",
        "order=shuffled",
        "clock=staggered",
        "clock.rounds_per_experience=[12,3,3,3,3]",
        "clock.max_shift=2",
    ]
    assert abs(accuracy(*own) - accuracy()) <= 0.02
