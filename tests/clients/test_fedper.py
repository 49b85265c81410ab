import pytest
import torch

from clients.fedper import FedPer as Client
from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.client import initial_model
from fedsim.grid import LocalGrid
from fedsim.sampling import Uniform
from fedsim.seeding import generator
from strategies.fedper import FedPer
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}


def run(private, rounds=2):
    """The clients' states and the final shared arrays."""
    client = small_client(small_setting(num_experiences=1, rounds=rounds), kind=Client)
    grid = LocalGrid(client_app_of(lambda _: client), 4, raise_errors=True)
    loop = small_loop(FedPer(**SAMPLERS, private=private), client, grid=grid)
    logs = list(loop.run(first_arrays(client.setting)))
    states = [to_params(s["private"]) for c in range(4) if (s := grid.store.get(c))]
    return client, states, logs


def test_heads_stay_apart_while_nothing_else_is_kept():
    _, states, logs = run(["head.bias"])
    assert all(state.keys() == {"head.bias"} for state in states)
    assert not torch.equal(states[0]["head.bias"], states[1]["head.bias"])
    assert to_params(logs[-1][1]).keys() == {"head.weight"}
    assert logs[-1][0].upload_bytes.keys() == {"base"}


def test_alone_a_client_is_plain_training_of_the_initial_model_for_all_rounds():
    _, states, logs = run([""])
    assert logs[-1][0].upload_bytes == {}
    assert logs[-1][0].download_bytes == {}
    alone = small_client(small_setting(num_experiences=1, rounds=2), kind=Client)
    model = initial_model(alone.setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shard = alone.scenario.shard(2, 0, "train")
    for round_ in (1, 2):
        order = torch.randperm(len(shard), generator=generator(0, "train", round_, 2))
        for part in order.split(4):
            optimizer.zero_grad()
            logits = model(shard.inputs[part])
            torch.nn.functional.cross_entropy(logits, shard.targets[part]).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(states[2][name], value)


def test_every_client_is_tested_with_its_own_head():
    _, _, logs = run(["head.weight", "head.bias"], rounds=1)
    accuracies = [upload.metrics["accuracy"][0] for upload in logs[-1][0].evaluations]
    assert len(accuracies) == 4
    assert accuracies != pytest.approx([accuracies[0]] * 4)
