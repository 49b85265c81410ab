"""FED-PUB on Cora in fedsim against a straight PyTorch loop of the same maths.

The loop below is what one would write without a framework: client after client, dense features,
PyTorch Geometric's convolutions, PyTorch's Adam, one forward pass for validation and test. It
starts from the same weights and draws the same dropout, so both must reach the same accuracies.
Times are CPU seconds of this process, imports and data preparation left out.

    python benchmarks/fedpub.py                          # 100 rounds, 10 disjoint subgraphs
    python benchmarks/fedpub.py --rounds 20 --repeats 3
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401 - loaded before the clock starts
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from fedsim.apps import client_app_of
from fedsim.arrays import Params
from fedsim.backbones.graph import GCN
from fedsim.backbones.graph_base import Graph
from fedsim.build import build, make
from fedsim.checks import Node
from fedsim.client import Setting, initial_model
from fedsim.config import compose, resolve
from fedsim.functional.masks import attach_masks, masks, weights
from fedsim.model import Model
from fedsim.results import Results
from fedsim.seeding import derive
from fedsim.training import seeded

L1 = PROXIMAL = THRESHOLD = 0.001


def fedsim(node: Node) -> tuple[list[float], float]:
    """Mean accuracy after every round, and CPU seconds."""
    simulation = build(node)
    engine = make(node, "engine")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        results = Results(run_dir, personal=True)
        app = client_app_of(lambda _: simulation.client)
        grid = engine.grid(app, num_clients=node["num_clients"], seed=node["seed"], run_dir=run_dir)
        curve = []
        start = time.process_time()
        simulation.run(
            grid, grid.roster, results, started=time.perf_counter(),
            watchers=[lambda _, accuracy: curve.append(accuracy)],
        )  # fmt: skip
        return curve[1:], time.process_time() - start


class PlainGCN(GCN):
    """The same network with PyTorch Geometric's own convolutions."""

    def embed(self, data: Graph) -> Tensor:
        """See :meth:`GCN.embed`."""
        links, values = gcn_norm(data.edge_index, None, len(data.x))
        return self.stacked(self.layers, data.x, lambda layer, x: layer(x, links, values))


class Straight:
    """One client of the straight loop."""

    def __init__(self, setting: Setting, client_id: int) -> None:
        self.id, self.seed = client_id, setting.seed
        splits = ("train", "val", "test")
        shards = {s: setting.scenario.shard(client_id, 0, s).inputs for s in splits}
        self.graph = setting.scenario.graph(client_id)
        self.rows = {split: data.mask for split, data in shards.items()}
        self.train_graph = shards["train"]
        start, scenario = initial_model(setting), setting.scenario
        backbone = PlainGCN(input_shape=scenario.input_shape)
        self.model = Model(backbone, scenario.num_classes)
        self.model.load_state_dict(start.state_dict())
        attach_masks(self.model, threshold=THRESHOLD)
        self.weights, self.masks = weights(self.model), masks(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, weight_decay=1e-6)

    def round(self, number: int, received: Params, proxy: Graph) -> tuple[Params, Tensor, float]:
        """Weights, embedding and test accuracy after one local step."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(received[name])
        self.model.train()
        with seeded(derive(self.seed, "noise", number, self.id)):
            logits = self.model(self.train_graph)
        loss = cross_entropy(logits, self.graph.y[self.rows["train"]])
        with torch.no_grad():
            penalty = L1 * sum(mask.abs().sum() for mask in self.masks.values())
            if number > 1:
                gaps = [(w - received[name]).norm() for name, w in self.weights.items()]
                penalty += PROXIMAL * sum(gaps)
            self.reported = float(loss + penalty)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.eval()
        with torch.no_grad():
            right = self.model(self.graph).argmax(1) == self.graph.y
            self.validation = right[self.rows["val"]].float().mean().item()
            accuracy = right[self.rows["test"]].float().mean().item()
            embedding = self.model.backbone.embed(proxy).mean(0)
            sent = {name: weight.clone() for name, weight in self.weights.items()}
        return sent, embedding, accuracy


def straight(node: Node, rounds: int) -> tuple[list[float], float]:
    """Mean accuracy after every round, and CPU seconds."""
    simulation = build(node)
    setting, scale = simulation.setting, node["strategy"]["scale"]
    proxy = simulation.client.proxy
    clients = [Straight(setting, c) for c in range(node["num_clients"])]
    received = [dict(initial_model(setting).state_dict())] * len(clients)
    curve = []
    start = time.process_time()
    for number in range(1, rounds + 1):
        done = [c.round(number, r, proxy) for c, r in zip(clients, received, strict=True)]
        curve.append(sum(accuracy for *_, accuracy in done) / len(done))
        embeddings = torch.stack([embedding for _, embedding, _ in done])
        alike = cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
        alpha = torch.softmax(scale * alike, dim=1)
        received = [
            {name: sum(a * sent[name] for a, (sent, *_) in zip(row, done, strict=True))
             for name in done[0][0]}
            for row in alpha
        ]  # fmt: skip
    return curve, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of each counts")
    parser.add_argument("overrides", nargs="*", help="e.g. num_clients=20 dataset=citeseer")
    options = parser.parse_args()
    os.environ.setdefault("FEDSIM_DATA", "data")
    node = resolve(
        compose(
            [
                "experiment=fedpub_cora_disjoint_10",
                f"clock.rounds_per_experience={options.rounds}",
                *options.overrides,
            ]
        )
    )
    best = {"straight loop": float("inf"), "fedsim": float("inf")}
    for _ in range(options.repeats):
        theirs, seconds = straight(node, options.rounds)
        best["straight loop"] = min(best["straight loop"], seconds)
        ours, seconds = fedsim(node)
        best["fedsim"] = min(best["fedsim"], seconds)
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    for name, seconds in best.items():
        print(f"{name:15}{seconds:8.2f} CPU seconds")
    print(f"ratio          {best['fedsim'] / best['straight loop']:8.2f}")
    print(f"accuracy after the last round: {ours[-1]:.4f} and {theirs[-1]:.4f}")
    print(f"largest difference in any round: {gap:.6f}")


if __name__ == "__main__":
    main()
