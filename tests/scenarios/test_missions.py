import numpy as np
import pytest

from fedsim.clock import LateClock
from scenarios.missions import Mission, Missions
from scenarios.toy import toy

TOY = toy(num_classes=8, shape=[3], train_examples=160, test_examples=40)  # 20 and 5 a class


def missions(**options):
    rules = {"classes": 2, "shots": 3}
    rules |= {name: options.pop(name) for name in list(options) if name in Mission.__slots__}
    values = {"dataset": TOY, "num_clients": 3, "num_experiences": 4, "base_classes": 2, "seed": 0}
    return Missions(mission=Mission(**rules), **{**values, **options})


def drawn(scenario):
    """Training examples of all missions, client by client."""
    first = int(scenario.base_classes > 0)
    return [
        scenario.indices(client, e, "train")
        for e in range(first, scenario.num_experiences)
        for client in range(scenario.num_clients)
    ]


def test_the_base_is_dealt_whole_and_once():
    scenario = missions()
    parts = [scenario.indices(client, 0, "train") for client in range(3)]
    together = np.sort(np.concatenate(parts))
    assert np.array_equal(together, scenario.indices(None, 0, "train"))
    assert sorted(set(TOY.train.targets[together].tolist())) == [0, 1]
    assert len(together) == 40


def test_a_mission_holds_its_classes_and_shots():
    scenario = missions()
    for e in (1, 2, 3):
        for client in range(3):
            shard = scenario.shard(client, e, "train")
            labels, counts = np.unique(shard.targets, return_counts=True)
            assert labels.tolist() == scenario.mission_classes(client, e)
            assert counts.tolist() == [3, 3]
            assert labels.min() >= 2


def test_without_replacement_no_example_is_seen_twice():
    examples = np.concatenate(drawn(missions()))
    assert len(np.unique(examples)) == len(examples) == 3 * 3 * 2 * 3


def test_with_replacement_examples_come_back():
    scenario = missions(replacement=True, num_experiences=20)
    examples = np.concatenate(drawn(scenario))
    assert len(np.unique(examples)) < len(examples)
    assert all(len(np.unique(part)) == len(part) for part in drawn(scenario))


def test_the_field_runs_out_with_a_hint():
    with pytest.raises(ValueError, match="used up after 8 missions") as error:
        missions(num_experiences=30)  # 120 examples of the field, 18 a mission
    assert "num_experiences to 9" in str(error.value)
    everything = np.concatenate(drawn(missions(num_experiences=9)))
    assert len(np.unique(everything)) == 120


def test_clients_meet_other_classes_where_they_must_not_overlap():
    scenario = missions(overlap=False, num_experiences=3)
    for e in (1, 2):
        labels = [c for client in range(3) for c in scenario.mission_classes(client, e)]
        assert len(set(labels)) == len(labels) == 6
    shared = missions(overlap=True, num_experiences=7)
    assert any(
        len({c for client in range(3) for c in shared.mission_classes(client, e)}) < 6
        for e in range(1, 7)
    )


def test_classes_do_not_recur_where_they_must_not():
    scenario = missions(num_clients=1, recurring=False)
    labels = [c for e in (1, 2, 3) for c in scenario.mission_classes(0, e)]
    assert sorted(labels) == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="used up"):
        missions(num_clients=1, recurring=False, num_experiences=5)


def test_class_by_class_is_a_permutation_of_the_field():
    scenario = missions(
        num_clients=1,
        base_classes=0,
        field_classes=5,
        num_experiences=5,
        classes=1,
        recurring=False,
        shots=15,
    )
    labels = [c for e in range(5) for c in scenario.classes(e)]
    assert sorted(labels) == scenario.field
    assert len(set(labels)) == 5
    assert [len(scenario.shard(0, e, "train")) for e in range(5)] == [15] * 5
    assert [len(scenario.shard(None, e, "test")) for e in range(5)] == [5] * 5


def test_pooled_test_data_hold_every_class_of_the_mission_once():
    scenario = missions()
    shard = scenario.shard(None, 2, "test")
    labels, counts = np.unique(shard.targets, return_counts=True)
    assert labels.tolist() == scenario.classes(2)
    assert set(counts.tolist()) == {5}


def test_the_same_seed_draws_the_same_missions():
    assert all(
        np.array_equal(*pair) for pair in zip(drawn(missions()), drawn(missions()), strict=True)
    )
    assert not all(
        np.array_equal(*pair)
        for pair in zip(drawn(missions()), drawn(missions(seed=1)), strict=True)
    )


def test_late_clients_meet_the_mission_that_runs_when_they_join():
    clock = LateClock(
        num_experiences=4, rounds_per_experience=1, late_fraction=1.0, latest_join=3, seed=0
    )
    joins = [clock.joins(client) for client in range(3)]
    for client, first in enumerate(joins):
        assert clock.at(first - 1, client).experience == -1
        assert clock.at(first, client).experience == first - 1


def test_avalanche_sees_the_missions_as_experiences():
    stream = missions().streams(1).train_stream
    assert [exp.classes_in_this_experience for exp in stream] == [
        missions().mission_classes(1, e) for e in range(4)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_classes": 8}, "base_classes must leave"),
        ({"field_classes": 7}, r"field_classes must lie in \[1, 6\]"),
        ({"num_experiences": 1}, "experience 0 is the base"),
        ({"shots": 0}, "mission.shots must be at least 1"),
        ({"classes": 0}, "mission.classes must be at least 1"),
    ],
)
def test_senseless_missions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        missions(**options)
