"""Where similarity matters: communities whose labels contradict each other."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from fedsim.config import compose, resolve
from fedsim.main import simulate


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Score and last similarities by scale, over 40 rounds of the named experiment."""
    found = {}
    for scale in (0.0, 10.0):
        folder = tmp_path_factory.mktemp(f"scale{scale:.0f}")
        overrides = [
            "experiment=fedpub_communities", "clock.rounds_per_experience=40", "progress=false",
            f"strategy.scale={scale}",
        ]  # fmt: skip
        summary = simulate(resolve(compose(overrides)), folder / "run", started=0.0)
        found[scale] = summary["test_accuracy"], np.load(folder / "run" / "similarity.npz")
    return found


def test_similarities_recover_the_communities(runs):
    values = runs[10.0][1]["values"]
    assert values.shape == (40, 12, 12)
    for number in (9, 39):
        distance = 1.0 - values[number]
        clusters = AgglomerativeClustering(3, metric="precomputed", linkage="average")
        found = clusters.fit_predict(distance)
        assert adjusted_rand_score(np.arange(12) // 4, found) > 0.8


def test_weighting_by_similarity_beats_the_plain_mean(runs):
    assert runs[10.0][0] > runs[0.0][0] + 0.01
