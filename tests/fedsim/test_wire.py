import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.arrays import LocalContent, to_record
from fedsim.clock import Clock
from fedsim.grid import LocalGrid
from fedsim.wire import Download, Upload, to_content, to_download, to_reply, to_upload

CLOCK = Clock(num_experiences=2, rounds_per_experience=3)


def context(**node_config):
    return Context(1, 2, node_config, RecordDict(), {})


def message(content):
    LocalGrid(ClientApp(), 1)  # tells Flower who sends
    return Message(content, 5, "train")


def test_a_download_survives_the_message():
    down = Download(
        client_id=3, tick=CLOCK.at(4, 3), records={"arrays": {"w": torch.ones(2)}}, config={"mu": 1}
    )
    got = to_download(message(to_content(down)), context(**{"partition-id": 3}), CLOCK)
    assert got.client_id == 3
    assert got.tick == down.tick
    assert got.tick.experience == 1
    assert got.config["mu"] == 1
    assert torch.equal(got.records["arrays"]["w"], torch.ones(2))


def test_an_upload_survives_the_reply():
    up = Upload(
        client_id=3,
        num_examples=7,
        records={"sums": {"0": torch.ones(2)}, "arrays": {"w": torch.zeros(1)}},
        metrics={"loss": 0.5, "accuracy": [0.1, 0.2]},
    )
    got = to_upload(to_reply(up, message(RecordDict())), 3)
    assert (got.client_id, got.num_examples, got.metrics) == (3, 7, up.metrics)
    torch.testing.assert_close(got.records, up.records, rtol=0, atol=0)


@pytest.mark.parametrize("node_config", [{}, {"partition-id": "three"}])
def test_a_node_without_partition_is_named(node_config):
    content = to_content(Download(client_id=0, tick=CLOCK.at(1), records={}))
    with pytest.raises(ValueError, match="node 2 needs an integer 'partition-id'"):
        to_download(message(content), context(**node_config), CLOCK)


def test_a_message_without_round_is_refused():
    with pytest.raises(ValueError, match="server-round"):
        to_download(message(RecordDict()), context(**{"partition-id": 0}), CLOCK)


def test_a_reply_without_weight_is_refused():
    reply = Message(
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message(RecordDict())
    )
    with pytest.raises(ValueError, match="num-examples"):
        to_upload(reply, 0)


def test_a_content_that_was_read_is_read_anew_after_a_change():
    up = Upload(client_id=3, num_examples=7, records={"arrays": {"w": torch.zeros(2)}})
    reply = to_reply(up, message(RecordDict()))
    reply.content = LocalContent.of(reply.content)
    first = to_upload(reply, 3)
    assert to_upload(reply, 3) is first
    reply.content["arrays"] = to_record({"w": torch.ones(2)})
    assert to_upload(reply, 3).records["arrays"]["w"].tolist() == [1.0, 1.0]
