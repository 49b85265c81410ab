"""A block of clients computes what the per-client loop computes."""

from functools import partial

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

from clients.ewc import EWC
from clients.fedprox import FedProx
from clients.replay import Replay
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params, to_record
from fedsim.backbones.vision import MLP, Conv4, Flatten, LeNet
from fedsim.client import initial_model
from fedsim.grid import LocalGrid
from fedsim.results import digest
from tests.fedsim.builders import first_arrays, small_loop, small_setting, small_training

CLIENTS = 9


def rounds(client, cohort, **options):
    """Logs, final arrays and grid of a whole run."""
    count = client.setting.scenario.num_clients
    app = client_app_of(lambda _: client)
    grid = LocalGrid(app, count, raise_errors=True, cohort=cohort, **options)
    strategy = FedAvg(1.0, 0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1)
    done = list(small_loop(strategy, client, grid=grid).run(first_arrays(client.setting)))
    return [log for log, _ in done], done[-1][1], app


def reason(app):
    (cohort,) = app._cohorts.values()
    return cohort.reason


def assert_equal(kind=SGD, *, setting=None, training=None, cohort=4, within=1e-6, **options):
    setting = setting or (lambda: small_setting(num_clients=CLIENTS))

    def client():
        return kind(setting(), training=training or small_training(), **options)

    logs, alone, _ = rounds(client(), "off")
    block_logs, together, app = rounds(client(), cohort)
    assert reason(app) is None
    got, want = to_params(together), to_params(alone)
    for name, value in want.items():
        assert torch.allclose(got[name], value, rtol=0, atol=within), name
    for a, b in zip(block_logs[1:], logs[1:], strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5)
        assert a.cohort == b.cohort
        assert a.num_examples == b.num_examples


def uneven(**options):
    """Clients with unequal numbers of examples."""
    from scenarios.order import SameOrder
    from scenarios.partition import Dirichlet
    from scenarios.single import Single
    from scenarios.toy import toy

    def make():
        base = small_setting(num_clients=CLIENTS, num_experiences=1, **options)
        shape = options.get("shape", (6,))
        scenario = Single(
            dataset=toy(num_classes=4, shape=shape, train_examples=150, test_examples=10),
            partition=Dirichlet(alpha=0.5),
            order=SameOrder(),
            num_clients=CLIENTS,
            seed=3,
        )
        sizes = {len(scenario.shard(c, 0, "train")) for c in range(CLIENTS)}
        assert len(sizes) > 3
        return type(base)(
            scenario=scenario, clock=base.clock, model=base.model, seed=0, device="cpu"
        )

    return make


BACKBONES = {
    "linear": (Flatten, (6,)),
    "mlp": (partial(MLP, hidden=[8]), (6,)),
    "dropout": (partial(MLP, hidden=[8, 8], dropout=0.3), (6,)),
    "lenet": (partial(LeNet, channels=(2, 4), hidden=8), (1, 16, 16)),
    "conv4 group norm": (partial(Conv4, width=4, norm="group"), (1, 16, 16)),
    "conv4 batch norm": (partial(Conv4, width=4, norm="batch"), (1, 16, 16)),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_models(name, sizes):
    backbone, shape = BACKBONES[name]
    if sizes == "equal":
        setting = partial(small_setting, num_clients=CLIENTS, shape=shape, backbone=backbone)
    else:
        setting = uneven(shape=shape, backbone=backbone)
    # a small rate: at 0.1 the networks with normalisation amplify any rounding a 10,000 times
    gentle = partial(torch.optim.SGD, lr=0.01)
    assert_equal(setting=setting, training=small_training(epochs=2, optimizer=gentle))


OPTIMISERS = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_with_clients_that_finish_early(name):
    training = small_training(optimizer=OPTIMISERS[name], epochs=3, schedule=lambda p: 1.0 - p)
    assert_equal(setting=uneven(), training=training)


def test_gradients_are_clipped_client_by_client():
    assert_equal(training=small_training(clip_norm=0.1))
    _, clipped, _ = rounds(SGD(small_setting(), training=small_training(clip_norm=0.1)), 2)
    _, free, _ = rounds(SGD(small_setting(), training=small_training()), 2)
    assert digest(clipped) != digest(free)


def test_full_batches_of_unequal_clients():
    assert_equal(setting=uneven(), training=small_training(batch_size=0, epochs=3))


def test_fedprox_pulls_every_client_to_what_it_received():
    assert_equal(FedProx, mu=0.7)
    assert_equal(FedProx, setting=uneven(), mu=0.7)


def test_replay_draws_each_clients_own_memory():
    setting = partial(small_setting, num_clients=CLIENTS, num_experiences=2, rounds=2)
    assert_equal(Replay, setting=setting, memory=6, replay_batch=3)


def test_ewc_stacks_anchors_and_importances_of_the_states():
    setting = partial(small_setting, num_clients=CLIENTS, num_experiences=2, rounds=2)
    assert_equal(EWC, setting=setting, penalty=50.0)


class Personal(SGD):
    """Every client adds its own offset, kept in its state, and sends it along."""

    def load(self, model, down, state):
        super().load(model, down, state)
        if "offset" not in state:
            state["offset"] = {"w": torch.rand(4)}  # the client's noise
        with torch.no_grad():
            model.head.bias += state["offset"]["w"]

    def loss(self, model, batch, down, state):
        pull = (model.head.bias - state["offset"]["w"]).square().sum()
        return super().loss(model, batch, down, state) + pull + 0.01 * model.head.weight.norm()

    def upload(self, model, shard, down, state):
        records = super().upload(model, shard, down, state)
        records["arrays"]["head.bias"] = records["arrays"]["head.bias"] + 0.1 * torch.rand(4)
        return records


def test_own_states_own_weights_and_noise_are_each_clients():
    assert_equal(Personal)


def test_execution_order_and_repetition_do_not_show():
    def run(order=None):
        client = SGD(uneven()(), training=small_training(epochs=2))
        return digest(rounds(client, 4, order=order)[1])

    assert run() == run() == run(lambda messages: messages[::-1])


def test_a_block_of_one_client_is_plain_descent_bit_for_bit():
    setting = small_setting(num_clients=1, num_experiences=1, rounds=1)
    _, arrays, _ = rounds(SGD(setting, training=small_training(batch_size=0)), 4)
    model = initial_model(setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shard = setting.scenario.shard(0, 0, "train")
    from fedsim.seeding import generator

    order = torch.randperm(len(shard), generator=generator(0, "train", 1, 0))
    cross_entropy(model(shard.inputs[order]), shard.targets[order]).backward()
    optimizer.step()
    got = to_params(arrays)
    assert all(torch.equal(got[name], value) for name, value in model.state_dict().items())


def test_replies_hold_no_more_than_their_block():
    trained = []

    class Watched(SGD):
        def upload(self, model, shard, down, state):
            trained.append(down.client_id)
            return super().upload(model, shard, down, state)

    client = Watched(small_setting(num_clients=CLIENTS), training=small_training())
    grid = LocalGrid(client_app_of(lambda _: client), CLIENTS, cohort=3)
    from flwr.app import ConfigRecord, Message, RecordDict

    content = RecordDict(
        {"arrays": first_arrays(client.setting), "config": ConfigRecord({"server-round": 1})}
    )
    messages = [Message(content, grid.roster.node(c), "train") for c in range(CLIENTS)]
    storages = []
    for reply in grid.stream(messages):
        weight = to_params(reply.content["arrays"])["head.weight"]
        storages.append(weight.untyped_storage().nbytes() // (weight.numel() * 4))
        assert len(set(trained)) <= 3 * (-(-len(storages) // 3))  # blocks to come are not begun
    assert max(storages) <= 3


def test_records_keep_their_views():
    record = to_record({"w": torch.zeros(2)})
    from flwr.app import MetricRecord, RecordDict

    from fedsim.arrays import LocalContent

    content = LocalContent.of(RecordDict({"a": record, "m": MetricRecord({"x": 1})}))
    assert list(content.array_records) == ["a"]
    assert list(content.metric_records) == ["m"]
    assert len(content.config_records) == 0
    content.metric_records["n"] = MetricRecord({"y": 2})
    assert content["n"]["y"] == 2
    del content.array_records["a"]
    assert "a" not in content
    with pytest.raises(TypeError, match="MetricRecord"):
        content.metric_records["bad"] = record
