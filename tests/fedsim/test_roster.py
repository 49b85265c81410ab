import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsim.grid import LocalGrid
from fedsim.roster import (
    FIRST_NODE,
    ClientError,
    NodeRoster,
    OrderedGrid,
    ask_roster,
    exchange,
    framed,
    plain,
)


def numbered(numbers):
    """An app whose clients say the numbers, by partition id, or raise where there is None."""
    app = ClientApp()

    def answer(message, context):
        number = numbers[context.node_config["partition-id"]]
        if number is None:  # as Flower's runtime reports it
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, framed(ValueError("out of order")))
            return Message(error, reply_to=message)
        return Message(RecordDict({"metrics": MetricRecord({"client": number})}), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    return app


class Silent(LocalGrid):
    """A grid whose first node is not connected and whose second never answers."""

    def push_messages(self, messages):
        return super().push_messages([m for m in messages if m.metadata.dst_node_id != FIRST_NODE])

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return [r for r in replies if r.metadata.src_node_id != FIRST_NODE + 1]


class Damaged(LocalGrid):
    """A grid whose replies got lost on the way, as a SuperLink says it: in its own name."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = 1
            reply.__dict__["_content"] = None
            reply.__dict__["_error"] = Error(ErrorCode.MESSAGE_UNAVAILABLE, "lost")
        return replies


def messages(count):
    for client in range(count):
        message = Message(RecordDict(), FIRST_NODE + client, "train")
        message.metadata.__dict__["_message_id"] = f"message {client}"
        yield message


def test_who_is_not_connected_or_does_not_answer_is_named():
    grid = Silent(numbered(range(3)), 3)
    replies = exchange(grid, list(messages(3)), timeout=0.1)
    by_node = {reply.metadata.src_node_id - FIRST_NODE: reply for reply in replies}
    assert by_node[0].error.reason == "the node is not connected"
    assert by_node[1].error.reason == "no answer within 0.1 s"
    assert by_node[2].content["metrics"]["client"] == 2


def test_errors_of_the_superlink_count_for_the_node_that_was_asked():
    grid = OrderedGrid(
        Damaged(numbered(range(2)), 2), NodeRoster({0: FIRST_NODE + 1, 1: FIRST_NODE})
    )
    replies = grid.send_and_receive(messages(2))
    assert [r.metadata.src_node_id for r in replies] == [FIRST_NODE + 1, FIRST_NODE]
    assert {r.error.reason for r in replies} == {"lost"}


def test_an_exception_stops_the_run_only_if_asked_to():
    inner, roster = (
        LocalGrid(numbered([0, None]), 2),
        NodeRoster({0: FIRST_NODE, 1: FIRST_NODE + 1}),
    )
    replies = OrderedGrid(inner, roster).send_and_receive(messages(2))
    assert [r.has_error() for r in replies] == [False, True]
    with pytest.raises(ClientError, match="client 1 failed in 'train': ValueError: out of order"):
        OrderedGrid(inner, roster, raise_errors=True).send_and_receive(messages(2))


def test_an_error_that_a_client_sends_is_no_exception():
    app = ClientApp()

    @app.train()
    def train(message, context):
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "on purpose")
        return Message(error, reply_to=message)

    grid = OrderedGrid(LocalGrid(app, 1), NodeRoster({0: FIRST_NODE}), raise_errors=True)
    (reply,) = grid.send_and_receive(messages(1))
    assert reply.error.reason == "on purpose"


def test_waiting_ends_when_no_answer_can_come():
    def check():
        raise RuntimeError("the runtime ended")

    with pytest.raises(RuntimeError, match="the runtime ended"):
        exchange(Silent(numbered(range(2)), 2), list(messages(2)), timeout=None, check=check)


def test_nodes_say_who_they_are():
    roster = ask_roster(LocalGrid(numbered([2, 0, 7, 1]), 4), 3, wait=1)
    assert [roster.node(c) - FIRST_NODE for c in range(3)] == [1, 3, 0]
    assert roster.client(FIRST_NODE) == 2
    assert roster.num_clients == 3


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([0, 0], "two nodes, 2 and 3, have partition-id=0"),
        ([0, 2], r"partition-id 0..1 \(num_clients\), none is 1; there are \[0, 2\]"),
        ([0, None], "none is 1; node 3: ValueError: out of order"),
        ([0], r"expected 2 nodes \(num_clients\), 1 connected within 0.2 s"),
    ],
)
def test_nodes_that_do_not_fit(numbers, reason):
    with pytest.raises(RuntimeError, match=reason):
        ask_roster(LocalGrid(numbered(numbers), len(numbers)), 2, wait=0.2)


def test_plain():
    assert plain("<class 'builtins.ValueError'>:<'no'>") == "ValueError: no"
    assert plain("no answer") == "no answer"
    assert plain(None) == "unknown"
