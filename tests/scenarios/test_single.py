import numpy as np
import pytest

from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.single import Single
from scenarios.toy import toy


def make(num_experiences=1):
    return Single(
        dataset=toy(),
        partition=IID(),
        order=SameOrder(),
        num_clients=3,
        num_experiences=num_experiences,
        seed=0,
    )


def test_one_experience_holds_everything():
    scenario = make()
    parts = [scenario.indices(c, 0, "train") for c in range(3)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(200))
    assert len(scenario.indices(None, 0, "test")) == 100
    assert scenario.classes(0) == list(range(10))
    assert scenario.experience_at(2, 0) == 0


def test_more_experiences_are_an_error():
    with pytest.raises(ValueError, match="num_experiences=2"):
        make(2)
