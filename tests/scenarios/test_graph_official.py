"""The published partitions of Cora, number by number."""

import numpy as np
import pytest
import torch

from scenarios.graph import GraphScenario
from scenarios.graph_data import Preparation
from scenarios.graph_datasets import pyg
from scenarios.graph_partition import Metis, OverlappingMetis
from scenarios.graph_split import RandomSplit
from scenarios.graph_streams import AllAtOnce
from scenarios.order import SameOrder

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def cora():
    prepare = Preparation(largest_component=True, normalize_features=True)
    return pyg(collection="Planetoid", names=["Cora"], prepare=prepare, download=False)


def official(cora, partition, num_clients):
    return GraphScenario(
        dataset=cora,
        partition=partition,
        order=SameOrder(),
        num_clients=num_clients,
        num_experiences=1,
        split=RandomSplit(),
        stream=AllAtOnce(),
        seed=0,
    )


def majority(scenario):
    """Score of the most frequent class, in percent: the unweighted mean over the clients."""
    label = int(torch.bincount(scenario.dataset.data.y).argmax())
    shards = [scenario.shard(c, 0, "test") for c in range(scenario.num_clients)]
    return round(100 * np.mean([float((s.targets == label).float().mean()) for s in shards]), 2)


@pytest.mark.parametrize(
    ("num_clients", "nodes", "train", "val", "test", "cut"),
    [
        (5, (484, 511), (86, 126), (172, 229), (188, 215), 403),
        (10, (241, 254), (41, 61), (82, 109), (90, 113), 615),
        (20, (120, 127), (17, 38), (31, 64), (36, 69), 853),
    ],
)
def test_disjoint_parts_and_splits_are_the_published_ones(
    cora, num_clients, nodes, train, val, test, cut
):
    report = official(cora, Metis(), num_clients).report()
    ranges = {
        name: (
            min(getattr(c, name) for c in report.clients),
            max(getattr(c, name) for c in report.clients),
        )
        for name in ("nodes", "train", "val", "test")
    }
    assert ranges == {"nodes": nodes, "train": train, "val": val, "test": test}
    assert (report.edges, report.lost_edges) == (5069, cut)
    assert sum(c.train for c in report.clients) == 497
    assert sum(c.test for c in report.clients) == 994


def test_the_majority_class_scores_what_the_plateau_shows(cora):
    assert majority(official(cora, Metis(), 10)) == 28.64
    assert majority(official(cora, OverlappingMetis(), 30)) == 29.94


def test_overlapping_halves_have_the_published_sizes(cora):
    report = official(cora, OverlappingMetis(), 10).report()
    assert min(c.nodes for c in report.clients) == 619
    assert max(c.nodes for c in report.clients) == 623
    assert np.mean([c.edges for c in report.clients]) == pytest.approx(625, abs=1)


def test_pymetis_cuts_about_as_few_links(cora):
    report = official(cora, Metis(use_recorded=False), 10).report()
    assert report.lost_edges == pytest.approx(615, rel=0.05)
    assert max(c.nodes for c in report.clients) <= 1.03 * 248.5
