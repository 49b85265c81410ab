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
from fedsim.roster import OrderedGrid, QueriedRoster
from fedsim.state import ClientState
from fedsim.wire import NUM_EXAMPLES, to_download, to_reply


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
