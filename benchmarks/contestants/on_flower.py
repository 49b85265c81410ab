"""Flower's own simulation engine (Ray) with an app as its documentation writes them."""

import sys

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workloads import WORKLOADS, flat, network, num_rounds, started

from contestants.flower_client import client_app
from contestants.stopwatch import Stopwatch


def main() -> None:
    name = sys.argv[1]
    work, watch, server = WORKLOADS[name], Stopwatch(tree=True), ServerApp()

    class Timed(FedAvg):
        def configure_train(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN003, ANN202
            watch.mark()
            return super().configure_train(*args, **kwargs)

    @server.main()
    def run(grid: Grid, _context: Context) -> None:
        strategy = Timed(work.cohort / work.clients, 0.0, min_available_nodes=work.clients)
        start = ArrayRecord(started(network(work)()).state_dict())
        result = strategy.start(grid, start, num_rounds=num_rounds())
        watch.mark()
        weights = list(result.arrays.to_torch_state_dict().values())
        watch.report(["flwr", "ray", "torch"], flat(weights))

    backend = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"num_cpus": 1, "address": "local", "include_dashboard": False},
    }
    run_simulation(server, client_app(name), work.clients, backend_config=backend)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
