"""Federated averaging of a GCN on subgraphs, against a plain PyTorch loop over the same clients.

    python benchmarks/graphs.py                        # Cora, or digits as a graph without it
    python benchmarks/graphs.py dataset=digits_graph   # or any other change of the configuration
    python benchmarks/graphs.py experiment=fedprox_cora_disjoint_10 --no-plain

The protocol is FED-PUB's: full-batch steps of Adam whose moments stay with the client, which is
tested after its steps. The plain loop is what one writes by hand: one model, an optimiser for each
client, PyTorch Geometric's convolutions on dense features, one forward pass for validation and
test. `auto` is `engine.cohort=auto`, `one by one` is `off`. All start from the same weights, draw
the same dropout and take turns, round by round; figures are medians over rounds of CPU seconds of
one thread, and ratios are of the rounds of one turn.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from fedsim.apps import client_app_of
from fedsim.arrays import to_params
from fedsim.backbones.graph import GCN
from fedsim.backbones.graph_base import Graph
from fedsim.build import build, make
from fedsim.checks import ConfigError, Node
from fedsim.client import initial_model
from fedsim.config import compose, resolve
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.seeding import derive
from fedsim.training import seeded

EXPERIMENT = "experiment=fedavg_cora_disjoint_10"
Outcome = tuple[dict[str, Tensor], float]  # weights after a round, mean test accuracy in it
WARM_UP = 3  # rounds in which code is loaded, caches are filled and blocks are checked


def fedsim_rounds(node: Node, cohort: str) -> Iterator[Outcome]:
    """Rounds of the engine, one at each ``next``."""
    node = {**node, "engine": {**node["engine"], "cohort": cohort}}
    simulation = build(node)
    setting = simulation.setting
    app = client_app_of(lambda _: simulation.client)
    with tempfile.TemporaryDirectory() as folder:
        grid = make(node, "engine").grid(
            app, num_clients=node["num_clients"], seed=node["seed"], run_dir=Path(folder)
        )
        loop = Loop(
            strategy=simulation.strategy, grid=grid, roster=grid.roster, clock=setting.clock,
            seed=setting.seed, evaluation=setting.evaluation, gate=simulation.gate,
        )  # fmt: skip
        rounds = loop.run(simulation.initial_arrays())
        next(rounds)  # the untrained model
        for log, arrays in rounds:
            found = [upload.metrics["accuracy"][0] for upload in log.evaluations]  # type: ignore[index]
            yield to_params(arrays), sum(found) / max(1, len(found))
        print(f"cohort={cohort}: {[c.reason for c in app._cohorts.values()]}")


class PlainGCN(GCN):
    """The same network with PyTorch Geometric's own convolutions."""

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GCN.embed`."""
        links, values = gcn_norm(data.edge_index, None, len(data.x))
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x, links, values))


def plain_rounds(node: Node) -> Iterator[Outcome]:
    """The same rounds as a loop over clients."""
    simulation = build(node)
    setting, training = simulation.setting, simulation.client.training
    scenario, seed = setting.scenario, setting.seed
    start = initial_model(setting)
    like: GCN = start.backbone  # type: ignore[assignment]
    backbone = PlainGCN(
        input_shape=scenario.input_shape, hidden=like.num_features, num_layers=len(like.layers),
        dropout=like.dropout,
    )  # fmt: skip
    model = Model(backbone, scenario.num_classes)
    model.load_state_dict(start.state_dict())
    params = list(model.parameters())
    ids = range(scenario.num_clients)
    optimizers = [training.optimizer(params) for _ in ids]
    trained: list[Graph] = [scenario.shard(c, 0, "train").inputs for c in ids]
    whole_graphs: list[Graph] = [scenario.graph(c) for c in ids]  # type: ignore[attr-defined]
    whole = [p.detach().clone() for p in params]
    names = [name for name, _ in model.named_parameters()]
    for round_ in range(1, setting.clock.num_rounds + 1):
        total, correct = [torch.zeros_like(w) for w in whole], 0.0
        parts = zip(ids, optimizers, trained, whole_graphs, strict=True)
        for client, optimizer, graph, everything in parts:
            with torch.no_grad():
                for p, w in zip(params, whole, strict=True):
                    p.copy_(w)
            model.train()
            with seeded(derive(seed, "noise", round_, client)):
                for _ in range(training.epochs):
                    optimizer.zero_grad()
                    cross_entropy(model(graph), graph.y[graph.mask]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            model.eval()
            with torch.no_grad():
                right = model(everything).argmax(1) == everything.y
                correct += right[everything.test_mask].float().mean().item()
                right[everything.val_mask].float().mean().item()
                for t, p in zip(total, params, strict=True):
                    t.add_(p)
        whole = [t / len(optimizers) for t in total]
        yield dict(zip(names, whole, strict=True)), correct / len(optimizers)


def resolved(options: argparse.Namespace) -> Node:
    """The configuration, on the digits where Cora is not to be had."""
    rounds = f"clock.rounds_per_experience={options.rounds + WARM_UP}"
    given = [EXPERIMENT, *options.overrides]
    try:
        node = resolve(compose([*given, rounds]))
        build(node)
    except ConfigError as error:
        if "not found" not in str(error):
            raise
        print(f"{error}\ninstead: dataset=digits_graph")
        node = resolve(compose([*given, "dataset=digits_graph", rounds]))
    return node


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=30, help="rounds that are measured")
    parser.add_argument("--no-plain", action="store_true", help="without the plain loop")
    parser.add_argument("overrides", nargs="*", help="e.g. num_clients=20 dataset=digits_graph")
    options = parser.parse_intermixed_args()
    os.environ.setdefault("FEDSIM_DATA", "data")
    node = resolved(options)
    ways = {} if options.no_plain else {"plain loop": plain_rounds(node)}
    ways |= {"one by one": fedsim_rounds(node, "off"), "auto": fedsim_rounds(node, "auto")}
    base = next(iter(ways))
    spent: dict[str, list[float]] = {way: [] for way in ways}
    last: dict[str, Outcome] = {}
    gc.collect()
    gc.freeze()  # as LocalEngine does; the plain loop gains as well
    for turn in range(options.rounds + WARM_UP):
        for way, rounds in ways.items():
            begun = time.process_time()
            last[way] = next(rounds)
            if turn >= WARM_UP:
                spent[way].append(time.process_time() - begun)
    for way, times in spent.items():
        ratios = [a / b for a, b in zip(times, spent[base], strict=True)]
        weights, accuracy = last[way]
        gaps = [float((weights[n] - w).abs().max()) for n, w in last[base][0].items()]
        gap = max(gaps, default=0.0)  # where nothing is exchanged there is nothing to compare
        print(
            f"{way:12}{1e3 * statistics.median(times):8.1f} ms a round"
            f"{statistics.median(ratios):7.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) of the"
            f" {base}; accuracy {accuracy:.4f}, weights apart {gap:.0e}"
        )
    for rounds in ways.values():
        next(rounds, None)  # says why clients were trained one by one, if they were


if __name__ == "__main__":
    main()
