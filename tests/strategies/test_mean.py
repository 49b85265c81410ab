import pytest
import torch

from fedsim.clock import Clock
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.mean import Mean

TICK = Clock(num_experiences=1, rounds_per_experience=1).at(1)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}


def upload(client, w, n):
    arrays = {"w": torch.tensor([w])}
    return Upload(client_id=client, num_examples=n, records={"arrays": arrays})


@pytest.mark.parametrize(("weighting", "expected"), [("clients", 2.0), ("examples", 1.0)])
def test_clients_weigh_equally_or_by_their_examples(weighting, expected):
    strategy = Mean(**SAMPLERS, weighting=weighting)
    state = strategy.init({"w": torch.zeros(1)})
    state = strategy.aggregate(TICK, state, iter([upload(0, 0.0, 3), upload(1, 4.0, 1)]))
    assert state["w"].tolist() == [expected]
    assert strategy.payload(TICK, state, 0)["arrays"] is strategy.payload(TICK, state, 1)["arrays"]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="examples or clients"):
        Mean(**SAMPLERS, weighting="equal")
