from functools import partial

import pytest
import torch
from torch import tensor

from clients.dkvb import DKVB
from fedsim.backbones.keyvalue_head import KeyValueHead
from fedsim.backbones.keyvalue_options import KeyFitting, Lookup, Readout
from fedsim.backbones.vision import MLP, Flatten
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.functional.codebooks import assign
from fedsim.functional.keyvalue import fetch_counts
from fedsim.model import Model
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.training import LocalTraining, fit
from fedsim.wire import Download
from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.task_incremental import TaskIncremental
from scenarios.toy import toy

TRAINING = LocalTraining(
    optimizer=partial(torch.optim.SGD, lr=0.3), epochs=2, batch_size=10, clip_norm=1.0
)
LOOKUP = Lookup(codebooks=5, pairs=16, key_size=3)


def setting(scenario=ClassIncremental, lookup=LOOKUP, backbone=None, **readout):
    data = scenario(
        dataset=toy(num_classes=6, shape=[8], train_examples=120, test_examples=60),
        partition=IID(),
        order=SameOrder(),
        num_clients=2,
        num_experiences=3,
        seed=0,
    )

    def model():
        head = partial(KeyValueHead, lookup=lookup, readout=Readout(**readout), seed=7)
        return Model(backbone() if backbone else Flatten(input_shape=(8,)), 6, head)

    clock = Clock(num_experiences=3, rounds_per_experience=2)
    return Setting(scenario=data, clock=clock, model=model, seed=0)


def nothing():
    return {
        "indices": torch.empty(0, dtype=torch.int64),
        "values": torch.empty(0, 6),
        "counts": torch.empty(0),
    }


def download(client, round_=1, records=None, client_id=0, **config):
    tick = client.setting.clock.at(round_, client_id)
    records = {"values": nothing(), **(records or {})}
    return Download(client_id=client_id, tick=tick, records=records, config=config)


def test_only_touched_rows_are_sent_with_what_was_added_to_them():
    client = DKVB(setting(start="normal"), training=TRAINING)
    start = initial_model(client.setting).head.values.detach()
    rows = client.train(download(client), ClientState()).records["rows"]
    shard = client.scenario.shard(0, 0, "train")
    fetched = fetch_counts(client.model.head.rows(shard.inputs), 80)
    assert torch.equal(rows["indices"], fetched.nonzero().flatten())
    assert torch.equal(rows["counts"], fetched[fetched > 0] * 2)  # two epochs
    now = client.model.head.values.detach()
    assert torch.equal(now[rows["indices"]], start[rows["indices"]] + rows["deltas"])
    untouched = fetched == 0
    assert torch.equal(now[untouched], start[untouched])


def test_training_equals_training_the_module_on_features():
    """The reduction: cached rows are the same method as keys searched for every batch."""
    client = DKVB(setting(), training=TRAINING, label_smoothing=0.1)
    module = initial_model(client.setting)
    client.train(download(client), ClientState())
    shard = client.scenario.shard(0, 0, "train")
    rng = generator(0, "train", 1, 0)
    batches = (b for _ in range(2) for b in shard.batches(10, rng))
    parameters = [module.head.values]
    fit(
        lambda b: torch.nn.functional.cross_entropy(
            module.train()(b.inputs), b.targets, label_smoothing=0.1
        ),
        batches,
        torch.optim.SGD(parameters, lr=0.3),
        parameters,
        1.0,
    )
    torch.testing.assert_close(client.model.head.values, module.head.values, atol=1e-6, rtol=0)


def test_encoder_projections_and_keys_do_not_move():
    def backbone():
        return MLP(input_shape=(8,), hidden=[8])

    client = DKVB(setting(backbone=backbone), training=TRAINING)
    before = {n: t.clone() for n, t in client.model.state_dict().items()}
    for round_ in range(1, 7):
        client.train(download(client, round_), ClientState())
    after = client.model.state_dict()
    frozen = [n for n in before if n not in ("head.values", "head.counts")]
    assert "backbone.layers.0.weight" in frozen
    assert all(torch.equal(before[n], after[n]) for n in frozen)


def test_a_download_replaces_what_another_client_left():
    client = DKVB(setting(), training=TRAINING)
    client.train(download(client, client_id=1), ClientState())
    received = {
        "indices": tensor([3]),
        "values": torch.full((1, 6), 2.0),
        "counts": tensor([5.0]),
    }
    client.load(client.model, download(client, records={"values": received}), ClientState())
    head = client.model.head
    assert head.values[3].tolist() == [2.0] * 6
    assert head.values.count_nonzero() == 6
    assert head.counts.nonzero().flatten().tolist() == [3]


def test_keys_are_remembered_by_the_client_and_change_what_is_looked_up():
    client, state = DKVB(setting(), training=TRAINING), ClientState()
    drawn = client.model.head.keys.clone()
    sent = {"keys": {"keys": drawn + 1.0}}
    first = client.train(download(client, records=sent), state).records["rows"]
    again = client.train(download(client), state).records["rows"]  # sent once is enough
    assert torch.equal(client.model.head.keys, drawn + 1.0)
    assert torch.equal(first["indices"], again["indices"])
    fresh = DKVB(setting(), training=TRAINING)
    other = fresh.train(download(fresh), ClientState()).records["rows"]
    assert not torch.equal(first["indices"], other["indices"])


@pytest.mark.parametrize("key_data", ["all", "current"])
def test_a_key_round_sends_sums_and_trains_nothing(key_data):
    client = DKVB(setting(), training=TRAINING, key_data=key_data)
    records = client.train(download(client, phase="keys"), ClientState()).records
    assert list(records) == ["cells"]
    assert client.model.head.values.count_nonzero() == 0
    experiences = range(3) if key_data == "all" else range(1)
    inputs = torch.cat([client.scenario.shard(0, e, "train").inputs for e in experiences])
    head = client.model.head
    expected = assign(head.heads(inputs), head.keys)
    indices = expected.counts.flatten().nonzero().flatten()
    assert torch.equal(records["cells"]["indices"], indices)
    torch.testing.assert_close(records["cells"]["sums"], expected.sums.view(-1, 3)[indices])
    assert records["cells"]["counts"].sum() == 5 * len(inputs)


def test_unlearning_counts_the_fetches_of_one_class_over_all_experiences():
    client = DKVB(setting(), training=TRAINING)
    label = int(client.scenario.shard(0, 2, "train").targets[0])  # met last
    down = download(client, phase="unlearn", **{"unlearn-class": label})
    fetched = client.train(down, ClientState()).records["fetched"]
    shard = client.scenario.shard(0, 2, "train")
    rows = client.model.head.rows(shard.inputs[shard.targets == label])
    assert torch.equal(fetched["indices"], rows.unique().long())
    assert fetched["counts"].sum() == rows.numel()


def test_masked_rows_are_neither_fetched_nor_left_with_a_value():
    client = DKVB(setting(start="normal"), training=TRAINING)
    row = int(client.train(download(client), ClientState()).records["rows"]["indices"][0])
    masked = {"masked": {"indices": tensor([row])}}
    rows = client.train(download(client, records=masked), ClientState()).records["rows"]
    assert row not in rows["indices"].tolist()
    assert client.model.head.values[row].tolist() == [0.0] * 6


def test_keys_fitted_to_public_data_are_the_same_in_every_process():
    public = toy(num_classes=3, shape=[8], train_examples=60, seed=9)
    fitting = KeyFitting(epochs=3, batch_size=20, start="data")
    one, two = (
        DKVB(setting(), training=TRAINING, public=public, key_fitting=fitting) for _ in range(2)
    )
    assert torch.equal(one.model.head.keys, two.model.head.keys)
    assert not torch.equal(one.model.head.keys, initial_model(setting()).head.keys)


def test_a_trained_decoder_travels_and_a_frozen_one_does_not():
    trained = DKVB(setting(decoder="linear", train_decoder=True), training=TRAINING)
    records = trained.train(download(trained), ClientState()).records
    assert sorted(records["decoder"]) == ["0.bias", "0.weight"]
    frozen = DKVB(setting(decoder="linear"), training=TRAINING)
    assert list(frozen.train(download(frozen), ClientState()).records) == ["rows"]


def test_wrong_settings_are_refused():
    linear = Setting(
        scenario=setting().scenario,
        clock=setting().clock,
        model=lambda: Model(Flatten(input_shape=(8,)), 6),
        seed=0,
    )
    with pytest.raises(ValueError, match="needs head=keyvalue, got Linear"):
        DKVB(linear, training=TRAINING)
    with pytest.raises(ValueError, match="label_smoothing must be 0 where task labels"):
        DKVB(setting(scenario=TaskIncremental), training=TRAINING)
    with pytest.raises(ValueError, match="key_data"):
        DKVB(setting(), training=TRAINING, key_data="some")
