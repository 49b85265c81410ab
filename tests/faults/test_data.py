"""Data that leaves some clients or classes with nothing."""

from dataclasses import replace

import numpy as np

from clients.sgd import SGD
from tests.faults.catalogue import SURVIVED, case, rejections, run
from tests.fedsim.builders import small_setting


def without(setting, *, client=None, label=None):
    """The setting with a client, or a class, that has no training example."""
    scenario = setting.scenario
    held = scenario.indices

    def indices(client_id, experience, split):
        found = held(client_id, experience, split)
        if split != "train":
            return found
        if client is not None and client_id == client:
            return found[:0]
        return found[np.asarray(scenario.targets(split))[found] != label]

    scenario.indices = indices
    return setting


@case(SURVIVED)
def test_a_client_without_training_data():
    setting = without(small_setting(num_experiences=1, rounds=3), client=2)
    logs, _ = run(setting=setting)
    assert [log.idle for log in logs[1:]] == [[2]] * 3
    assert not rejections(logs)


@case(SURVIVED)
def test_a_class_that_nobody_holds():
    setting = without(small_setting(num_experiences=1, rounds=3), label=3)
    logs, _ = run(setting=setting)
    assert not rejections(logs)
    assert logs[-1].evaluations


@case(SURVIVED)
def test_clients_that_have_nothing_to_do():
    class Idle(SGD):
        def train(self, down, state):
            upload = super().train(down, state)
            return replace(upload, num_examples=0, records={}, metrics={})

    logs, _ = run(kind=Idle)
    assert [len(log.idle) for log in logs[1:]] == [4, 4, 4]
