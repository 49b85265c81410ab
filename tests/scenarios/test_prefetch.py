"""Data that is cut ahead, for many clients at once, is the data that each would get."""

import numpy as np
import pytest
import torch

import fedsim
import fedsim.scenario
from fedsim.build import build
from fedsim.config import compose, resolve
from fedsim.scenario import Scenario

SMALL = ["num_clients=6", "progress=false", "client=sgd", "clock.rounds_per_experience=1"]
TOY = ["dataset=toy", "dataset.train_examples=240"]
KINDS = {
    "class incremental": [*TOY, "scenario.num_experiences=2"],
    "task labels": [*TOY, "scenario=task_incremental", "scenario.num_experiences=2"],
    "data incremental": [*TOY, "scenario=data_incremental", "scenario.num_experiences=3"],
    "rotations": ["dataset=digits", "scenario=domain_incremental"],
    "permutations": ["dataset=digits", "scenario=domain_permutation"],
    "many": [*TOY, "scenario=single", "partition=resampled"],
    "skewed": [*TOY, "scenario=single", "partition=resampled", "partition.alpha=0.1"],
    "missions": ["dataset=digits", "scenario=missions", "scenario.field_classes=8"],
    "flipped": ["dataset=digits", "scenario=single", "faults=labelflip"],
    "encoder": ["dataset=digits", "scenario=single", "encoder=random"],
}


def scenario(words):
    return build(resolve(compose([*SMALL, *words]))).setting.scenario


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_the_same(kind):
    alone, ahead = scenario(KINDS[kind]), scenario(KINDS[kind])
    for split in ("train", "test"):
        for experience in range(alone.num_experiences):
            ahead.prefetch(range(6), experience, split)
            for client in range(6):
                want, got = (s.shard(client, experience, split) for s in (alone, ahead))
                assert np.array_equal(got.indices, want.indices)
                assert torch.equal(got.inputs, want.inputs)
                assert torch.equal(got.targets, want.targets)
                assert (got.tasks is None) == (want.tasks is None)
                assert got.inputs.storage_offset() == got.targets.storage_offset() == 0
                assert got.tasks is None or torch.equal(got.tasks, want.tasks)


def counting(monkeypatch, kind):
    """A scenario with the sizes of what it builds."""
    made = scenario(KINDS[kind])
    sizes = []
    build_ = made.build

    def counted(indices, experience, split):
        sizes.append(len(indices))
        return build_(indices, experience, split)

    monkeypatch.setattr(made, "build", counted)
    return made, sizes


def test_nothing_is_cut_twice(monkeypatch):
    made, sizes = counting(monkeypatch, "many")
    first = made.shard(2, 0, "train")
    made.prefetch([0, 1, 2, 2, 3], 0, "train")
    assert sizes == [len(first), 3 * len(first)]
    assert made.shard(2, 0, "train") is first
    made.shard(3, 0, "train")
    made.prefetch([0, 1], 0, "train")
    assert len(sizes) == 2


def test_no_more_is_cut_than_there_is_room_for(monkeypatch):
    made, sizes = counting(monkeypatch, "many")
    one = made.shard(0, 0, "train")
    room = 2 * (one.nbytes + 2048) + 1
    monkeypatch.setattr(fedsim.scenario, "_AHEAD_BYTES", room)
    made.prefetch(range(1, 6), 0, "train")
    assert sizes[1:] == [2 * len(one)]
    assert [key[0] for key in made._cache] == [0, 1, 2]


def passing(monkeypatch, kind):
    """A scenario whose clients the cache has no room for, with the sizes of what it builds."""
    monkeypatch.setattr(fedsim.scenario, "_FEW", 0)
    return counting(monkeypatch, kind)


@pytest.mark.parametrize("kind", ["many", "flipped"])
def test_what_would_not_last_is_held_until_the_next_is_cut(monkeypatch, kind):
    alone = scenario(KINDS[kind])
    made, sizes = passing(monkeypatch, kind)
    for ids in ([0, 1, 2], [3, 4, 5], [0, 1, 2]):
        made.prefetch(ids, 0, "train")
        cut = len(sizes)
        for client in ids:
            want, got = (s.shard(client, 0, "train") for s in (alone, made))
            assert torch.equal(got.inputs, want.inputs)
            assert torch.equal(got.targets, want.targets)
            assert np.array_equal(got.indices, want.indices)
            assert got.inputs.data_ptr() % 64 == 0
        assert len(sizes) == cut
    assert cut == 3
    assert not made._cache
    assert [*made._passing[0, "train"]] == [0, 1, 2]


def test_few_experiences_are_held_at_a_time(monkeypatch):
    made, _ = passing(monkeypatch, "data incremental")
    monkeypatch.setattr(fedsim.scenario, "_PASSING", 2)
    for experience in range(3):
        made.prefetch([0, 1], experience, "train")
    assert [*made._passing] == [(2, "train")]


@pytest.mark.parametrize("cohort", ["off", "auto"])
def test_runs_are_the_same_bits_whether_shards_last_or_not(monkeypatch, tmp_path, cohort):
    words = ["num_clients=40", "backbone=linear", f"engine.cohort={cohort}", "client=sgd"]
    words += ["clock.rounds_per_experience=3", *KINDS["many"]]
    digests = []
    for few in (8, 0):
        monkeypatch.setattr(fedsim.scenario, "_FEW", few)
        digests.append(fedsim.run(" ".join(words), folder=tmp_path / str(few)).summary["digest"])
    assert digests[0] == digests[1]


def test_scenarios_with_shards_of_their_own_are_left_alone():
    class Own(Scenario):
        num_clients, num_experiences, num_classes, input_shape = 2, 1, 2, (1,)
        indices = build = targets = None

        def shard(self, client_id, experience, split):
            raise AssertionError("nobody asked")

    Own().prefetch([0, 1], 0, "train")
