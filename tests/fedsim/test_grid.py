import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsim import run_app
from fedsim.grid import LocalGrid
from fedsim.roster import FIRST_NODE, LocalRoster, OrderedGrid


def counting_app():
    """Counts its calls in the context and returns count, partition and run config."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        state = context.state.get("calls", MetricRecord({"n": 0}))
        context.state["calls"] = MetricRecord({"n": state["n"] + 1})
        arrays = message.content["arrays"].to_torch_state_dict()
        arrays["w"] += context.node_config["partition-id"] + context.run_config.get("add", 0)
        metrics = MetricRecord({"num-examples": 1, "calls": state["n"] + 1})
        return Message(
            RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
        )

    @app.query()
    def query(message, context):
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("no")
        return Message(RecordDict(), reply_to=message)

    return app


def payload():
    return RecordDict({"arrays": ArrayRecord({"w": torch.zeros(2)}), "config": ConfigRecord({})})


def test_replies_come_in_client_order():
    grid = LocalGrid(counting_app(), 5)
    content = payload()
    messages = [Message(content, FIRST_NODE + c, "train") for c in (3, 0, 4)]
    replies = grid.send_and_receive(messages)
    assert [r.metadata.src_node_id - FIRST_NODE for r in replies] == [0, 3, 4]
    assert [r.content["arrays"].to_torch_state_dict()["w"][0].item() for r in replies] == [0, 3, 4]


def test_execution_order_does_not_show():
    grid = LocalGrid(counting_app(), 5, order=lambda messages: messages[::-1])
    messages = [Message(payload(), FIRST_NODE + c, "train") for c in (3, 0, 4)]
    replies = grid.send_and_receive(messages)
    assert [r.metadata.src_node_id - FIRST_NODE for r in replies] == [0, 3, 4]


def test_state_stays_with_its_client_and_only_touched_clients_have_one():
    grid = LocalGrid(counting_app(), 100_000)
    for _ in range(2):
        (reply,) = grid.send_and_receive([Message(payload(), FIRST_NODE + 7, "train")])
    assert reply.content["metrics"]["calls"] == 2
    assert grid.store.ids() == [7]


def test_a_client_that_writes_to_its_message_does_not_reach_its_neighbour():
    app = ClientApp()

    @app.train()
    def train(message, context):
        message.content["config"]["lr"] = 9.0
        values = message.content["arrays"]["w"].numpy()
        seen = float(values[0])
        values += 1
        message.content["arrays"]["w"] = Array(values)
        return Message(RecordDict({"m": MetricRecord({"seen": seen})}), reply_to=message)

    content = payload()
    messages = [Message(content, FIRST_NODE + c, "train") for c in range(3)]
    replies = LocalGrid(app, 3).send_and_receive(messages)
    assert [r.content["m"]["seen"] for r in replies] == [0, 0, 0]
    assert "lr" not in content["config"]


def test_an_exception_becomes_an_error_reply_as_on_flowers_engines():
    grid = LocalGrid(counting_app(), 2)
    good, bad = grid.send_and_receive(
        [Message(RecordDict(), FIRST_NODE + c, "query") for c in range(2)]
    )
    assert good.has_content()
    assert "RuntimeError: no" in bad.error.reason


def test_an_exception_can_stop_the_run_and_names_the_client():
    grid = LocalGrid(counting_app(), 2, raise_errors=True)
    with pytest.raises(RuntimeError, match="no") as caught:
        grid.send_and_receive([Message(RecordDict(), FIRST_NODE + 1, "query")])
    assert any("client 1" in note for note in caught.value.__notes__)


def test_an_unknown_node_gets_an_error_reply():
    (reply,) = LocalGrid(counting_app(), 2).send_and_receive([Message(payload(), 99, "train")])
    assert reply.has_error()


def test_messages_can_be_pushed_and_pulled_once():
    grid = LocalGrid(counting_app(), 3)
    ids = list(grid.push_messages([Message(payload(), FIRST_NODE + c, "train") for c in range(3)]))
    assert len(list(grid.pull_messages(ids))) == 3
    assert list(grid.pull_messages(ids)) == []


def test_messages_past_the_timeout_are_not_run():
    grid = LocalGrid(counting_app(), 3)
    messages = [Message(payload(), FIRST_NODE + c, "train") for c in range(3)]
    assert list(grid.send_and_receive(messages, timeout=-1.0)) == []
    assert grid.store.ids() == []


def test_at_least_one_client():
    with pytest.raises(ValueError, match="num_clients"):
        LocalGrid(counting_app(), 0)


def fedavg_server(rounds, result):
    server = ServerApp()

    @server.main()
    def main(grid, context):
        result.append(
            FedAvg().start(grid, ArrayRecord({"w": torch.zeros(2)}), num_rounds=rounds).arrays
        )

    return server


def test_a_third_party_message_app_runs_unmodified():
    result = []
    run_app(fedavg_server(2, result), counting_app(), num_clients=3, run_config={"add": 1})
    assert result[0].to_torch_state_dict()["w"].tolist() == [
        4.0,
        4.0,
    ]  # two rounds of mean 0..2 + 1


class Adder(NumPyClient):
    def fit(self, parameters, config):
        return [parameters[0] + 1], 1, {}

    def evaluate(self, parameters, config):
        return float(parameters[0][0]), 1, {}


def test_a_legacy_numpy_client_runs_unmodified():
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.server import ServerAppComponents
    from flwr.server import ServerConfig
    from flwr.server.strategy import FedAvg as LegacyFedAvg

    seen = []

    class Watching(LegacyFedAvg):
        def aggregate_fit(self, server_round, results, failures):
            out = super().aggregate_fit(server_round, results, failures)
            seen.append(parameters_to_ndarrays(out[0])[0].tolist())
            return out

    def server_fn(context):
        strategy = Watching(initial_parameters=ndarrays_to_parameters([np.zeros(2)]))
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    run_app(
        ServerApp(server_fn=server_fn),
        ClientApp(client_fn=lambda context: Adder().to_client()),
        num_clients=3,
    )
    assert seen == [[1.0, 1.0], [2.0, 2.0]]


def test_an_ordered_grid_hides_the_random_node_ids():
    class Shuffled(LocalRoster):
        def node(self, client_id):
            return 100 - client_id

    assert tuple(OrderedGrid(LocalGrid(counting_app(), 3), Shuffled(3)).get_node_ids()) == (
        100,
        99,
        98,
    )
