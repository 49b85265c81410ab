"""Draw what four models think of the plane after each pair of blobs (figure of the DKVB paper).

    python benchmarks/dkvb_toy.py --out dkvb_toy.png

Each row is one run of ``experiment=dkvb_toy``; each column is the model after one more pair. A
colour is a class. The accuracy over all eight classes stands above each picture.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch

from fedsim.apps import client_app_of
from fedsim.arrays import Records
from fedsim.build import build
from fedsim.clock import Tick
from fedsim.config import compose, resolve
from fedsim.data import Batch
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

PROBE = ["client=probe", "strategy=fedavg"]
MODELS = {
    "20 codebooks of 20": [],
    "1 codebook of 400": [
        "head.lookup.codebooks=1",
        "head.lookup.pairs=400",
        "head.lookup.projection=chunk",
    ],
    "MLP": [*PROBE, "head=mlp", "head.hidden=32"],
    "linear": [*PROBE, "head=linear"],
}
SIDE = 120  # points of the plane along one side


def plane() -> torch.Tensor:
    """Points of the unit square, row by row, ``[SIDE * SIDE, 2]``."""
    axis = torch.linspace(0, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def run(overrides: list[str]) -> tuple[list[np.ndarray], list[float]]:
    """Predicted class of every point, and accuracy, after each experience."""
    simulation = build(resolve(compose(["experiment=dkvb_toy", *overrides])))
    client, setting = simulation.client, simulation.setting
    pictures: list[np.ndarray] = []
    accuracies: list[float] = []

    def evaluate(tick: Tick, records: Records) -> Upload | None:
        upload = simulation.evaluate(tick, records)
        if upload is not None and tick.round > 0:
            down = Download(client_id=None, tick=tick, records=records)
            points = plane()
            batch = Batch(points, torch.zeros(len(points), dtype=torch.int64))
            with torch.no_grad():
                scores = client.predict(client.model, batch, down, ClientState())
            pictures.append(scores.argmax(dim=1).view(SIDE, SIDE).numpy())
            accuracies.append(float(np.mean(upload.metrics["accuracy"])))
        return upload

    grid = LocalGrid(client_app_of(lambda _: client), 1, raise_errors=True)
    loop = Loop(
        strategy=simulation.strategy,
        grid=grid,
        roster=grid.roster,
        clock=setting.clock,
        seed=setting.seed,
        evaluator=evaluate,
    )
    for _ in loop.run(simulation.initial_arrays()):
        pass
    return pictures, accuracies


def draw(results: dict[str, tuple[list[np.ndarray], list[float]]], out: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from scenarios.ring import ring

    points = ring().test
    columns = max(len(pictures) for pictures, _ in results.values())
    size = (2.2 * columns, 2.4 * len(results))
    figure, axes = pyplot.subplots(len(results), columns, figsize=size, squeeze=False)
    for row, (name, (pictures, accuracies)) in zip(axes, results.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, picture, accuracy in zip(row, pictures, accuracies, strict=True):
            axis.imshow(picture, origin="lower", extent=(0, 1, 0, 1), cmap="Set2", vmin=0, vmax=7)
            axis.scatter(*points.inputs.T, c="black", s=0.5)
            axis.set(xticks=[], yticks=[], title=f"{accuracy:.2f}")
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Run the four models and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dkvb_toy.png"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its strategies narrate every round
    results = {}
    for name, overrides in MODELS.items():
        start = time.perf_counter()
        results[name] = run(overrides)
        seconds = time.perf_counter() - start
        steps = " ".join(f"{accuracy:.3f}" for accuracy in results[name][1])
        print(f"{name:20} accuracy after each pair: {steps}   {seconds:.1f} s")
    draw(results, out)
    print(f"drawn to {out}")


if __name__ == "__main__":
    main()
