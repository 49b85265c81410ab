"""Flower apps around a client: in process, and as the app that Flower's own engines start.

On Flower's engines both ends compose the same configuration from one string, ``overrides`` in the
run config, and build their parts once per process::

    flwr run . --run-config "overrides='experiment=fedavg_digits seed=1'"
"""

import shlex
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim.client import Client
from fedsim.grid import OrderedGrid
from fedsim.state import ClientState
from fedsim.wire import NUM_EXAMPLES, to_download, to_reply

_ROSTER_WAIT_S = 300.0


def client_app_of(client_for: Callable[[Context], Client]) -> ClientApp:
    """A Flower ``ClientApp`` that trains and evaluates with a fedsim client.

    Args:
        client_for: Gives the process's client.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_for(context)
        down = to_download(message, context, client.setting.clock)
        return to_reply(client.train(down, ClientState(context.state)), message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_for(context)
        down = to_download(message, context, client.setting.clock)
        return to_reply(client.evaluate(down, ClientState(context.state)), message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        metrics = MetricRecord({"client": partition, NUM_EXAMPLES: 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class QueriedRoster:
    """Which Flower node is which client, found by asking every node once.

    Args:
        grid: A grid whose nodes answer queries.
        num_clients: How many nodes to wait for.

    Raises:
        RuntimeError: If the nodes do not come, or two of them claim to be the same client.
    """

    def __init__(self, grid: Grid, num_clients: int) -> None:
        self.num_clients = num_clients
        nodes = _wait_for_nodes(grid, num_clients)
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        self._node_of: dict[int, int] = {}
        for reply in grid.send_and_receive(asked, timeout=_ROSTER_WAIT_S):
            client = int(reply.content["metrics"]["client"])  # type: ignore[arg-type]
            self._node_of[client] = reply.metadata.src_node_id
        missing = [c for c in range(num_clients) if c not in self._node_of]
        if missing:
            raise RuntimeError(
                f"expected nodes with partition-id 0..{num_clients - 1}, none is {missing[0]}"
            )
        self._client_of = {node: client for client, node in self._node_of.items()}

    def node(self, client_id: int) -> int:
        """See :class:`fedsim.grid.Roster`."""
        return self._node_of[client_id]

    def client(self, node_id: int) -> int:
        """See :class:`fedsim.grid.Roster`."""
        return self._client_of[node_id]


def _wait_for_nodes(grid: Grid, count: int) -> list[int]:
    deadline = time.monotonic() + _ROSTER_WAIT_S
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected {count} nodes (num_clients), {len(nodes)} connected")
        time.sleep(0.1)
    return nodes


@lru_cache(maxsize=1)
def _client(overrides: str) -> Client:
    from fedsim.build import build
    from fedsim.config import compose, resolve

    return build(resolve(compose(shlex.split(overrides)))).client


client_app = client_app_of(lambda context: _client(str(context.run_config.get("overrides", ""))))
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured simulation over Flower's nodes."""
    from fedsim.build import build, save_config
    from fedsim.config import compose, resolve
    from fedsim.results import Results
    from fedsim.simulation import write_environment

    started = time.perf_counter()
    config = compose(shlex.split(str(context.run_config.get("overrides", ""))))
    node = resolve(config)
    simulation = build(node)
    roster = QueriedRoster(grid, node["num_clients"])
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    run_dir = Path("runs") / str(node["name"]) / f"{stamp}_seed{node['seed']}"
    results = Results(run_dir, personal=simulation.personal, overwrite=bool(node["overwrite"]))
    save_config(node, run_dir)
    write_environment(run_dir)
    simulation.run(OrderedGrid(grid, roster), roster, results, started=started)
