import pytest
import torch

from fedsim.clock import Clock
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.fedper import FedPer

TICK = Clock(num_experiences=1, rounds_per_experience=1).at(1)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
PARAMS = {"backbone.w": torch.zeros(1), "head.w": torch.ones(1)}


def test_only_what_is_not_private_travels():
    strategy = FedPer(**SAMPLERS, private=["head."], weighting="examples")
    state = strategy.init(PARAMS)
    assert strategy.payload(TICK, state, 0) == {"base": {"backbone.w": PARAMS["backbone.w"]}}
    uploads = [
        Upload(client_id=c, num_examples=n, records={"base": {"backbone.w": torch.tensor([w])}})
        for c, n, w in [(0, 1, 0.0), (1, 3, 4.0)]
    ]
    assert strategy.aggregate(TICK, state, uploads)["backbone.w"].tolist() == [3.0]


def test_with_everything_private_nothing_travels_and_replies_are_still_asked_for():
    strategy = FedPer(**SAMPLERS, private=[""])
    state = strategy.init(PARAMS)
    replies = iter([Upload(client_id=0, num_examples=1, records={})])
    assert strategy.payload(TICK, state, 0) == {}
    assert strategy.aggregate(TICK, state, replies) == {}
    assert next(replies, None) is None


def test_a_name_that_begins_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'haed\.'"):
        FedPer(**SAMPLERS, private=["haed."]).init(PARAMS)
