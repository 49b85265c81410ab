import pytest
import torch

from fedsim.clock import Clock
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.fedgnn import FedGNN
from strategies.mean import Mean

TICK = Clock(num_experiences=1, rounds_per_experience=9).at(1)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
ONE = {**SAMPLERS, "at_least": 1}
PARAMS = {"w": torch.zeros(2)}
# 10 - 11 at client 0, 12 - 13 at client 1, and 11 - 12 between them: 10 and 12, 11 and 13 match
LINKS = {
    0: {"own": [10, 11], "rows": [0, 1, 1], "neighbours": [11, 10, 12]},
    1: {"own": [12, 13], "rows": [0, 0, 1], "neighbours": [13, 11, 12]},
}


def upload(client, w, **records):
    tensors = {
        name: {key: torch.tensor(value) for key, value in params.items()}
        for name, params in {"arrays": {"w": w}, **records}.items()
    }
    return Upload(client_id=client, num_examples=client + 1, records=tensors)


def after(strategy, *rounds):
    state = strategy.init(PARAMS)
    for uploads in rounds:
        state = strategy.aggregate(TICK, state, iter(uploads))
    return state


def told(strategy, state, client):
    return {
        name: {key: tensor.tolist() for key, tensor in params.items()}
        for name, params in strategy.payload(TICK, state, client).items()
        if name != "arrays"
    }


def met():
    return [upload(client, [1.0, 1.0], holdings=LINKS[client]) for client in (0, 1)]


def test_matched_nodes_are_wanted_and_their_embeddings_passed_on():
    strategy = FedGNN(**ONE)
    state = after(strategy, met())
    assert told(strategy, state, 0) == {"wanted": {"rows": [0, 1]}}
    assert strategy.measures(state) == {"foreign_neighbours": 1.0}
    sent = [upload(1, [1.0, 1.0], embeddings={"rows": [0, 1], "values": [[5.0], [6.0]]})]
    state = after(strategy, met(), sent)
    assert told(strategy, state, 0)["neighbours"] == {
        "embeddings": [[5.0], [6.0]],  # of 12 and 13
        "rows": [0, 1],  # 10 shares 11 with 12, 11 shares 12 with 13
        "sources": [0, 1],
    }
    assert told(strategy, state, 1) == {"wanted": {"rows": [0, 1]}}, "client 0 sent none yet"


def test_a_node_wanted_since_the_last_upload_is_left_out():
    strategy = FedGNN(**ONE)
    sent = [upload(1, [1.0, 1.0], embeddings={"rows": [1], "values": [[6.0]]})]
    state = after(strategy, met(), sent)
    neighbours = told(strategy, state, 0)["neighbours"]
    assert neighbours == {"embeddings": [[6.0]], "rows": [1], "sources": [0]}


def test_newcomers_get_the_model_alone_and_are_matched_once_they_told_their_links():
    strategy = FedGNN(**ONE)
    state = after(strategy, met()[:1])
    assert told(strategy, state, 1) == {}
    assert told(strategy, state, 0) == {"wanted": {"rows": []}}
    state = after(strategy, met()[:1], met()[1:])
    assert told(strategy, state, 0) == {"wanted": {"rows": [0, 1]}}
    assert told(strategy, state, None) == {}


@pytest.mark.parametrize("weighting", ["clients", "examples"])
def test_the_model_is_the_mean(weighting):
    uploads = [upload(0, [1.0, 2.0]), upload(1, [4.0, 2.0])]
    plain = Mean(**SAMPLERS, weighting=weighting).aggregate(TICK, PARAMS, uploads)
    strategy = FedGNN(**SAMPLERS, weighting=weighting)
    assert torch.equal(strategy.shared(after(strategy, uploads))["w"], plain["w"])


def test_without_neighbours_clients_are_not_asked_for_links():
    assert FedGNN(**SAMPLERS, limit=0).config(TICK) == {"matching": False}
    for wrong in ({"limit": -1}, {"at_least": 0}, {"weighting": "none"}):
        with pytest.raises(ValueError, match=r"strategy\."):
            FedGNN(**SAMPLERS, **wrong)
