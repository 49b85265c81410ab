"""Four methods on small bundled data, and what they come to in this process."""

import functools
import tempfile
from pathlib import Path

from fedsim.config import compose, resolve
from fedsim.main import simulate

METHODS = {
    # averages; the clients remember examples
    "fedavg": "dataset=toy dataset.train_examples=60 training.epochs=1 scenario.num_experiences=2"
    " clock.rounds_per_experience=1",
    # a model for every client; the clients remember masks
    "fedpub": "experiment=fedpub_cora_disjoint_5 dataset=karate_club partition=louvain"
    " clock.rounds_per_experience=2 training.epochs=1",
    # sums and counts of features
    "reconnaissance": "experiment=fedrecon_digits scenario.num_experiences=2",
    # a few values of a table
    "dkvb": "experiment=dkvb_toy scenario.num_experiences=2 training.epochs=2",
}


def overrides_of(method, *more):
    """Two clients, two rounds; trained one by one, for the bits are compared."""
    words = ["num_clients=2", "engine.cohort=off", "progress=false"]
    return [*METHODS[method].split(), *words, *more]


@functools.cache
def digest_here(method, *more):
    """The digest of the run with the clients in this process."""
    with tempfile.TemporaryDirectory() as folder:
        node = resolve(compose([*overrides_of(method, *more), "hydra.run.dir=."]))
        summary = simulate(node, Path(folder) / "here", started=0.0)
    assert summary["rounds"] == 2
    return summary["digest"]
