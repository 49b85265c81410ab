import numpy as np
import pytest

from scenarios.central import Central, central_missions
from scenarios.missions import Mission
from tests.scenarios.test_missions import TOY, missions


def central(**options):
    values = {"scenario": missions(), "num_clients": 1, "num_experiences": 4}
    return Central(**{**values, **options})


def test_one_client_holds_all_that_was_seen():
    scenario, pooled = missions(), central()
    seen = np.concatenate([scenario.indices(None, e, "train") for e in range(3)])
    assert np.array_equal(pooled.indices(0, 2, "train"), np.unique(seen))
    assert np.array_equal(pooled.indices(0, 2, "test"), scenario.indices(None, 2, "test"))
    assert len(pooled.shard(0, 2, "train")) == len(np.unique(seen))


def test_the_missions_are_those_of_the_pooled_clients():
    pooled = central_missions(
        dataset=TOY,
        num_clients=1,
        pooled_clients=3,
        num_experiences=4,
        base_classes=2,
        mission=Mission(classes=2, shots=3),
        seed=0,
    )
    assert np.array_equal(pooled.indices(0, 3, "train"), central().indices(0, 3, "train"))


def test_without_cumulation_it_holds_the_experience():
    pooled = central(cumulative=False)
    assert np.array_equal(pooled.indices(0, 2, "train"), missions().indices(None, 2, "train"))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_clients=1"):
        central(num_clients=2)
    with pytest.raises(ValueError, match="the scenario has 4"):
        central(num_experiences=3)
