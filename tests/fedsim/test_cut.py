"""How a scenario is cut, as numbers."""

import json

import numpy as np
import pytest

from fedsim.clock import Clock, LateClock, StaggeredClock
from fedsim.config import compose, resolve
from fedsim.cut import DRAWN_NODES, describe, drawing, facts, timeline

TOY = ["dataset=toy", "num_clients=3", "scenario.num_experiences=2"]


def parts(*overrides):
    from fedsim.build import make

    node = resolve(compose([*TOY, *overrides]))
    return make(node, "scenario"), make(node, "clock")


def test_facts_by_hand():
    labels = np.array([[4, 0], [2, 2]])
    held = [np.array([0, 1, 2, 3]), np.array([3, 4, 5, 6])]
    found = facts(labels, held)
    assert (found["smallest_client"], found["largest_client"]) == (4, 4)
    assert found["classes_per_client"] == 1.5
    assert found["fewest_classes"] == 1
    # together 3/4 and 1/4: the clients differ from that by 1/4 and 1/4
    assert found["label_skew"] == pytest.approx(0.25)
    assert found["class_overlap"] == pytest.approx(0.5)  # {0} and {0, 1}
    assert found["shared_examples"] == pytest.approx(1 / 7)


def test_labels_are_the_clients_training_examples():
    scenario, clock = parts("partition=dirichlet")
    cut = describe(scenario, clock)
    labels = np.array(cut["labels"])
    assert labels.sum() == len(scenario.targets("train"))
    for client in range(3):
        examples = [len(scenario.indices(client, e, "train")) for e in range(2)]
        assert cut["examples"][client] == examples
        assert labels[client].sum() == sum(examples)
    assert json.loads(json.dumps(cut)) == cut


def test_an_example_that_comes_in_every_experience_counts_once():
    scenario, clock = parts("scenario=domain_brightness")
    cut = describe(scenario, clock)
    assert np.sum(cut["labels"]) == len(scenario.targets("train"))


@pytest.mark.parametrize(
    "clock",
    [
        Clock(num_experiences=3, rounds_per_experience=[1, 4, 2]),
        StaggeredClock(num_experiences=3, rounds_per_experience=4, max_shift=3, seed=1),
        LateClock(
            num_experiences=3, rounds_per_experience=4, late_fraction=0.7, latest_join=7, seed=1
        ),
    ],
)
def test_the_time_line_is_the_clocks(clock):
    scenario, _ = parts("scenario.num_experiences=3", "order=shuffled")
    for client in range(3):
        stretches = timeline(scenario, clock, client)
        said = {r: e for first, last, e in stretches for r in range(first, last + 1)}
        for round_ in range(1, clock.num_rounds + 1):
            position = clock.at(round_, client).experience
            expected = None if position < 0 else scenario.experience_at(client, position)
            assert said.get(round_) == expected


def test_a_graphs_links_are_counted_and_drawn():
    scenario, clock = parts(
        "dataset=karate_club", "scenario=graph", "partition=graph_random", "client=sgd",
        "backbone=gcn", "scenario.num_experiences=1", "scenario.split.train=0.4",
    )  # fmt: skip
    cut = describe(scenario, clock)
    graph = cut["graph"]
    assert graph["edges"] == 78
    assert sum(c["edges"] for c in graph["clients"]) + graph["lost_edges"] == 78
    assert [len(d["classes"]) for d in cut["drawings"]] == [c["nodes"] for c in graph["clients"]]
    assert [len(d["links"]) for d in cut["drawings"]] == [c["edges"] for c in graph["clients"]]


def test_a_large_graph_is_drawn_in_part():
    import torch
    from torch_geometric.data import Data

    n = 500
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    graph = Data(y=torch.zeros(n, dtype=torch.long), edge_index=torch.cat([ring, ring.flip(0)], 1))
    drawn = drawing(graph)
    assert len(drawn["classes"]) == DRAWN_NODES
    assert len(drawn["links"]) == DRAWN_NODES - 1  # one stretch of the ring
