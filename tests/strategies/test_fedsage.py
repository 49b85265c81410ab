import pytest
import torch

from fedsim.clock import Clock
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.fedsage import FedSage
from strategies.mean import Mean

CLOCK = Clock(num_experiences=1, rounds_per_experience=9)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
PARAMS = {"w": torch.zeros(2)}


def upload(client, **records):
    tensors = {name: {"w": torch.tensor(value)} for name, value in records.items()}
    return Upload(client_id=client, num_examples=client + 1, records=tensors)


def generators(*clients):
    return [upload(c, generator=[float(c)], codes=[10.0 * c]) for c in clients]


def gradients(*pairs):
    found = {}
    for sender, owner, value in pairs:
        found.setdefault(sender, {})[f"gradient.{owner}"] = [value]
    return [upload(sender, **records) for sender, records in found.items()]


def after(strategy, *rounds):
    state = strategy.init(PARAMS)
    for number, uploads in enumerate(rounds, start=1):
        state = strategy.aggregate(CLOCK.at(number), state, iter(uploads))
    return state


def told(strategy, state, round_, client):
    records = strategy.payload(CLOCK.at(round_), state, client)
    return {name: params["w"].tolist() for name, params in records.items() if name != "arrays"}


def test_two_rounds_a_step_and_then_averaging():
    strategy = FedSage(**SAMPLERS, steps=2)
    phases = [strategy.config(CLOCK.at(r))["phase"] for r in range(1, 7)]
    assert phases == ["generate", "compare", "generate", "compare", "classify", "classify"]
    assert FedSage(**SAMPLERS, steps=0).phase(CLOCK.at(1)) == "classify"


def test_a_client_gets_everybody_elses_generators_and_the_sum_of_gradients_of_its_own():
    strategy = FedSage(**SAMPLERS, steps=2)
    state = after(strategy, generators(0, 1, 2))
    assert told(strategy, state, 2, 1) == {
        "generator.0": [0.0], "codes.0": [0.0], "generator.2": [2.0], "codes.2": [20.0],
    }  # fmt: skip
    sent = gradients((0, 1, 1.0), (0, 2, 5.0), (1, 0, 2.0), (2, 0, 3.0), (2, 1, 4.0))
    state = after(strategy, generators(0, 1, 2), sent)
    assert [told(strategy, state, 3, c) for c in (0, 1, 2)] == [
        {"gradient": [5.0]}, {"gradient": [5.0]}, {"gradient": [5.0]},
    ]  # fmt: skip
    assert told(strategy, state, 3, None) == {}


def test_a_gradient_waits_for_its_owner_and_is_handed_out_once():
    strategy = FedSage(**SAMPLERS, steps=2)
    sent = gradients((0, 1, 1.0), (1, 0, 2.0))
    state = after(strategy, generators(0, 1), sent, generators(0))
    assert told(strategy, state, 5, 0) == {}, "it took part and has it"
    assert told(strategy, state, 5, 1) == {"gradient": [1.0]}
    classified = [upload(1, arrays=[3.0, 1.0])]
    state = after(
        strategy, generators(0, 1), sent, generators(0), gradients((0, 1, 7.0)), classified
    )
    assert told(strategy, state, 6, 1) == {}
    assert strategy.shared(state)["w"].tolist() == [3.0, 1.0]


def test_summing_leaves_the_uploads_alone():
    strategy = FedSage(**SAMPLERS, steps=1)
    sent = gradients((0, 2, 1.0), (1, 2, 4.0))
    after(strategy, generators(0, 1, 2), sent)
    assert [u.records["gradient.2"]["w"].item() for u in sent] == [1.0, 4.0]


@pytest.mark.parametrize("weighting", ["clients", "examples"])
def test_without_steps_it_is_the_mean(weighting):
    uploads = [upload(0, arrays=[1.0, 2.0]), upload(1, arrays=[4.0, 2.0])]
    plain = Mean(**SAMPLERS, weighting=weighting).aggregate(CLOCK.at(1), PARAMS, uploads)
    strategy = FedSage(**SAMPLERS, steps=0, weighting=weighting)
    assert torch.equal(strategy.shared(after(strategy, uploads))["w"], plain["w"])


def test_impossible_arguments_are_refused():
    for wrong in ({"steps": -1}, {"weighting": "none"}):
        with pytest.raises(ValueError, match=r"strategy\."):
            FedSage(**SAMPLERS, **wrong)
