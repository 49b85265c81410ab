import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from fedsim.clock import Clock
from fedsim.functional.packing import pack
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.fedpub import FedPub
from strategies.mean import Mean

TICK = Clock(num_experiences=1, rounds_per_experience=1).at(1)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
PARAMS = {"w": torch.zeros(2), "steps": tensor(0)}
E1, E2, BOTH = tensor([1.0, 0.0]), tensor([0.0, 2.0]), tensor([3.0, 3.0])


def upload(client, w, embedding, steps=1, **metrics):
    arrays = {"w": tensor(w), "steps": tensor(steps)}
    records = {"arrays": arrays, "embedding": {"mean": embedding}}
    return Upload(client_id=client, num_examples=5, records=records, metrics=metrics)


def aggregated(uploads, scale=1.0, state=None):
    strategy = FedPub(**SAMPLERS, scale=scale)
    state = strategy.init(PARAMS) if state is None else state
    return strategy, strategy.aggregate(TICK, state, iter(uploads))


def test_two_clients_by_hand():
    _, state = aggregated([upload(0, [0.0, 1.0], E1), upload(1, [4.0, 1.0], E2)])
    own = math.e / (math.e + 1)  # exp(1 * 1) against exp(1 * 0)
    assert state.personal[0]["w"].tolist() == pytest.approx([4 * (1 - own), 1.0])
    assert state.personal[1]["w"].tolist() == pytest.approx([4 * own, 1.0])
    assert state.shared["w"].tolist() == pytest.approx([2.0, 1.0])


def test_three_clients_by_hand():
    clients = [upload(0, [0.0, 0.0], E1), upload(1, [3.0, 0.0], E2), upload(2, [6.0, 0.0], BOTH)]
    _, state = aggregated(clients, scale=2.0)
    side, far = math.exp(2 / math.sqrt(2)), 1.0
    own = math.exp(2.0)
    total = own + side + far
    assert state.personal[0]["w"][0].item() == pytest.approx((3 * far + 6 * side) / total)
    assert state.personal[2]["w"][0].item() == pytest.approx(
        (3 * side + 6 * own) / (own + 2 * side)
    )


def test_weights_are_a_mean_with_the_own_model_first():
    rng = torch.Generator().manual_seed(0)
    uploads = [upload(c, [1.0, 1.0], torch.randn(2, generator=rng)) for c in range(6)]
    _, state = aggregated(uploads, scale=3.0)
    weights = state.weights
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(weights.argmax(dim=1), torch.arange(6))


def test_weights_depend_on_the_embeddings_alone():
    _, state = aggregated([upload(0, [0.0, 1.0], E1), upload(1, [4.0, 1.0], BOTH)])
    others = [upload(0, [9.0, -5.0], E1), upload(1, [0.0, 2.0], BOTH)]
    _, same = aggregated([replace(u, num_examples=100 + 7 * u.client_id) for u in others])
    assert torch.equal(state.weights, same.weights)
    _, turned = aggregated([upload(0, [0.0, 1.0], E1), upload(1, [4.0, 1.0], E2)])
    assert not torch.equal(state.weights, turned.weights)


def test_scale_zero_is_the_plain_mean_whatever_the_embeddings():
    uploads = [upload(0, [0.0, 1.0], E1), upload(1, [4.0, 3.0], E2)]
    _, state = aggregated(uploads, scale=0.0)
    mean = Mean(**SAMPLERS, weighting="clients").aggregate(TICK, PARAMS, uploads)
    for params in (state.personal[0], state.personal[1], state.shared):
        assert torch.equal(params["w"], mean["w"])


def test_identical_clients_share_weights():
    _, state = aggregated([upload(0, [1.0, 0.0], E1), upload(1, [3.0, 0.0], E1)], scale=7.0)
    assert state.personal[0]["w"].tolist() == [2.0, 0.0]
    assert torch.equal(state.personal[0]["w"], state.personal[1]["w"])


def test_who_sits_out_keeps_its_model_and_a_newcomer_gets_the_plain_mean():
    strategy, first = aggregated([upload(0, [0.0, 0.0], E1), upload(1, [4.0, 0.0], E2)])
    _, second = aggregated([upload(1, [8.0, 0.0], E2)], state=first)
    assert strategy.payload(TICK, second, 0)["arrays"] is first.personal[0]
    assert second.personal[1]["w"].tolist() == [8.0, 0.0]
    assert strategy.payload(TICK, second, 7)["arrays"] is second.shared
    assert second.cohort == (1,)


def test_integers_keep_their_type():
    _, state = aggregated([upload(0, [0.0, 0.0], E1, steps=3), upload(1, [0.0, 0.0], E1, steps=3)])
    assert state.personal[0]["steps"].dtype == torch.int64
    assert state.personal[0]["steps"].item() == 3


def test_entries_left_out_are_as_they_were_sent():
    strategy = FedPub(**SAMPLERS, scale=0.0)
    state = strategy.init({"w": tensor([5.0, 6.0]), "b": torch.zeros(1)})
    bits, values = pack(tensor([1.0, 2.0]), tensor([True, False]))
    records = {
        "dense": {"b": torch.ones(1)},
        "bits": {"w": bits},
        "values": {"w": values},
        "embedding": {"mean": E1},
    }
    state = strategy.aggregate(TICK, state, [Upload(client_id=0, num_examples=1, records=records)])
    assert state.personal[0]["w"].tolist() == [1.0, 6.0]
    assert state.personal[0]["b"].tolist() == [1.0]


def test_measures_tell_the_own_weight_and_the_masks():
    uploads = [
        upload(0, [0.0, 0.0], E1, mask_zeros=0.25),
        upload(1, [0.0, 0.0], E1, mask_zeros=0.75),
    ]
    strategy, state = aggregated(uploads)
    assert strategy.measures(state) == {"own_weight": 0.5, "mask_zeros": 0.5}
    assert strategy.measures(strategy.init(PARAMS)) == {}


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="scale"):
        FedPub(**SAMPLERS, scale=-1.0)
