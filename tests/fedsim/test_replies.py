"""Replies that stay in the process say what others say, and averaging blocks is averaging."""

import pickle
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx

from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.averaging import average_blocks, averages, configured
from fedsim.bundle import Bundle
from fedsim.gate import squared_norm
from fedsim.grid import LocalGrid
from fedsim.loop import flower_sampling
from fedsim.replies import BlockReply, LocalReply, local_reply, unread
from fedsim.wire import Upload, content_bytes, round_of, to_reply, to_upload
from strategies.mean import Mean
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

ROUND = 3


@pytest.fixture(autouse=True)
def _sender():
    LocalGrid(client_app_of(lambda _: None), 1)  # tells Flower who sends


def bundle(rows=3, scale=1.0):
    torch.manual_seed(0)
    stack = {"w": scale * torch.randn(rows, 2, 4), "n": torch.arange(rows)}
    return Bundle(stack, {"s": torch.ones(5)}, ["w", "s", "n"])


def uploads(rows=3, **options):
    made = bundle(rows, **options).rows
    return [
        Upload(client_id=c, num_examples=c + 1, records={"arrays": r}, metrics={"loss": 0.5 * c})
        for c, r in enumerate(made)
    ]


def asked(client):
    from fedsim.clock import Tick
    from fedsim.wire import Download, to_content

    tick = Tick(ROUND, 0, 0, is_first=False, is_last=False)
    message = Message(
        to_content(Download(client_id=client, tick=tick, records={})), client, "train"
    )
    message.metadata.__dict__["_message_id"] = str(client + 40)
    return message


def pair(upload):
    """The same reply made in both ways."""
    message = asked(upload.client_id)
    return local_reply(upload, message, ROUND), to_reply(upload, message)


def test_a_bundle_hands_out_rows_in_the_order_of_the_names():
    made = bundle()
    assert [list(row) for row in made.rows] == [["w", "s", "n"]] * 3
    assert torch.equal(made.rows[1]["w"], made.stack["w"][1])
    assert made.rows[2]["s"] is made.shared["s"]


def test_squares_are_those_of_every_row():
    made = bundle()
    for row, square in zip(made.rows, made.squares(), strict=True):
        assert square == pytest.approx(squared_norm(dict(row)), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_the_row_that_is_not_finite_shows(value):
    stack = {"w": torch.ones(3, 4)}
    stack["w"][1, 2] = value
    finite = [torch.isfinite(torch.tensor(s)).item() for s in Bundle(stack, {}, ["w"]).squares()]
    assert finite == [True, False, True]


def variants():
    """Uploads of one client of a block, and of clients that were run one by one."""
    (row, *_) = uploads()
    tensors = dict(row.records["arrays"])
    more = {"arrays": tensors, "protos": {"sums": torch.ones(2, 3, dtype=torch.float64)}}
    return {
        "row": row,
        "alone": replace(row, records={"arrays": tensors}),
        "several records": replace(row, records=more, num_examples=2.5),
        "nothing": replace(row, records={}, num_examples=0, metrics={}),
        "lists": replace(row, metrics={"accuracy": [0.5, float("nan")], "examples": [3, 4]}),
    }


@pytest.mark.parametrize("kind", variants())
def test_a_local_reply_reads_like_any_other(kind):
    upload = variants()[kind]
    ours, theirs = pair(upload)
    assert unread(ours) is upload
    assert unread(theirs) is None
    assert isinstance(ours, BlockReply) == (kind == "row")
    for name in ("run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id",
                 "group_id", "message_type", "src_task_id", "dst_task_id"):  # fmt: skip
        assert getattr(ours.metadata, name) == getattr(theirs.metadata, name), name
    assert ours.metadata.ttl == pytest.approx(theirs.metadata.ttl, abs=1.0)
    assert ours.has_content()
    assert not ours.has_error()
    assert ours.round == round_of(theirs.content)
    assert ours.num_bytes() == content_bytes(theirs.content) == content_bytes(ours.content)
    assert unread(ours) is None  # somebody may write to it now
    assert list(ours.content) == list(theirs.content)
    assert repr(ours.content["metrics"]) == repr(theirs.content["metrics"])
    assert ours.content["config"] == theirs.content["config"]
    for record in ours.content.array_records:
        got, want = (to_params(r.content[record]) for r in (ours, theirs))
        assert list(got) == list(want)
        assert all(torch.equal(got[n], want[n]) for n in want)
    ours.content["metrics"]["num-examples"] = 77
    assert to_upload(ours, 5).num_examples == 77
    assert to_upload(ours, 5).client_id == 5


def test_a_new_content_is_all_that_counts():
    reply, _ = pair(uploads()[0])
    reply.content = RecordDict()
    assert unread(reply) is None
    assert len(reply.content) == 0


@pytest.mark.parametrize("kind", ["row", "alone"])
def test_a_local_reply_leaves_the_process_as_a_plain_one(kind):
    upload = variants()[kind]
    copy = pickle.loads(pickle.dumps(pair(upload)[0]))
    assert type(copy) is Message
    assert to_upload(copy, 0).num_examples == upload.num_examples
    assert torch.equal(to_upload(copy, 0).records["arrays"]["w"], upload.records["arrays"]["w"])


@pytest.mark.parametrize(
    "other",
    [
        {"num_examples": True},
        {"num_examples": None},
        {"metrics": {"a": True}},
        {"metrics": {"a": "b"}},
        {"metrics": {"a": []}},
        {"metrics": {"a": [1, 0.5]}},
        {"records": {"metrics": {}}},
        {"records": {"config": {}}},
        {"records": {"arrays": {"w": [1.0]}}},
        {"records": {"arrays": {1: torch.ones(1)}}},
        {"records": {"arrays": None}},
    ],
    ids=str,
)
def test_what_flower_must_judge_makes_no_local_reply(other):
    upload = replace(variants()["alone"], **other)
    assert local_reply(upload, asked(0), ROUND) is None


def test_averaging_blocks_is_flowers_averaging():
    first, second = uploads(3), uploads(2, scale=3.0)
    replies = [pair(upload)[0] for upload in [*first, *second[:1]]]
    plain = [pair(upload)[1] for upload in [*first, *second[:1]]]
    arrays, metrics = average_blocks(FedAvg(), ROUND, iter(replies))
    want, wanted = FedAvg().aggregate_train(ROUND, plain)
    got, expected = to_params(arrays), to_params(want)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name].double(), tensor.double(), rtol=1e-6, atol=1e-7)
    assert metrics["loss"] == pytest.approx(wanted["loss"])


def test_only_flowers_own_averaging_is_replaced():
    assert averages(FedAvg())
    assert averages(FedProx(proximal_mu=0.1))
    assert not averages(FedAdam())
    assert not averages(FedAvg(weighted_by_key="other"))
    assert not averages(FedAvg(train_metrics_aggr_fn=lambda *_: None))
    assert not averages(Mean(sampler=None, evaluation_sampler=None))


def test_a_strategy_of_its_own_gets_the_messages():
    seen = []

    class Watching(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.extend(replies)
            return super().aggregate_train(server_round, replies)

    client = small_client(small_setting(num_clients=9))
    grid = LocalGrid(client_app_of(lambda _: client), 9, raise_errors=True, cohort=4)
    strategy = Watching(1.0, 0.0, min_available_nodes=1)
    logs = [
        log for log, _ in small_loop(strategy, client, grid=grid).run(first_arrays(client.setting))
    ]
    assert any(isinstance(reply, BlockReply) for reply in seen)  # those of equal length
    assert all(isinstance(reply, LocalReply) for reply in seen)
    assert len(seen) == 9 * (len(logs) - 1)
    assert "arrays" in seen[0].content.array_records


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (9, {"fraction": 1.0}),
        (50, {"fraction": 0.3}),
        (50, {"fraction": 0.01, "nodes": 4}),
        (5000, {"fraction": 0.002, "arrayrecord_key": "model"}),
    ],
)
def test_the_messages_are_those_of_flowers_averaging(count, options, kind):
    grid = LocalGrid(client_app_of(lambda _: None), count)
    names = {"fraction": f"fraction_{kind}", "nodes": f"min_{kind}_nodes"}
    strategy = FedAvg(**{names.get(name, name): value for name, value in options.items()})
    arrays = first_arrays(small_setting())
    with flower_sampling(5):
        configure = getattr(strategy, f"configure_{kind}")
        wanted = list(configure(ROUND, arrays, ConfigRecord(), grid))
    with flower_sampling(5):
        got = list(configured(strategy, ROUND, arrays, grid, kind))
    assert [m.metadata.dst_node_id for m in got] == [m.metadata.dst_node_id for m in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        left, right = (
            {k: v for k, v in m.metadata.__dict__.items() if k != "_created_at"}
            for m in (ours, theirs)
        )
        assert left == right
        assert dict(ours.content) == dict(theirs.content)


def test_strategies_that_ask_in_their_own_way_do(monkeypatch):
    grid, arrays = LocalGrid(client_app_of(lambda _: None), 4), first_arrays(small_setting())
    (first, *_) = configured(FedProx(proximal_mu=0.5), ROUND, arrays, grid, "train")
    assert first.content["config"]["proximal-mu"] == 0.5
    assert list(configured(FedAvg(fraction_train=0.0), ROUND, arrays, grid, "train")) == []
    assert list(configured(FedAvg(fraction_evaluate=0.0), ROUND, arrays, grid, "evaluate")) == []
