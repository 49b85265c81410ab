from itertools import pairwise

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from scenarios.graph_data import GraphDataset
from scenarios.graph_metis import metis, neighbor_lists
from scenarios.graph_partition import (
    DirichletNodes,
    Louvain,
    Metis,
    NaturalGraphs,
    OverlappingMetis,
    RandomNodes,
)
from scenarios.graph_recorded import fingerprint, recorded
from tests.scenarios.graph_toy import planted


def cliques(sizes):
    """Disjoint cliques, neighbours joined by a single link; the class is the clique."""
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    linked = (y[:, None] == y[None, :]).fill_diagonal_(False)
    starts = np.cumsum([0, *sizes[:-1]])
    for left, right in pairwise(starts):
        linked[left, right] = linked[right, left] = True
    data = Data(x=torch.ones(len(y), 1), edge_index=linked.nonzero().t(), y=y)
    return GraphDataset(name="cliques", data=data, num_classes=len(sizes))


DISJOINT = [
    Metis(),
    Louvain(),
    RandomNodes(),
    DirichletNodes(alpha=0.5, min_nodes=3),
]


@pytest.mark.parametrize("partition", DISJOINT, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("num_clients", [1, 3, 7])
def test_every_node_belongs_to_exactly_one_client(partition, num_clients):
    members = partition.members(planted(), num_clients)
    assert len(members) == num_clients
    assert sorted(np.concatenate(members).tolist()) == list(range(80))
    assert all(np.all(np.diff(nodes) > 0) for nodes in members)
    again = partition.members(planted(), num_clients)
    assert all(np.array_equal(a, b) for a, b in zip(members, again, strict=True))


def test_metis_and_louvain_find_planted_cliques():
    dataset = cliques([10, 10, 10, 10])
    for partition in (Metis(), Louvain()):
        members = partition.members(dataset, 4)
        assert sorted(nodes.tolist()[0] for nodes in members) == [0, 10, 20, 30]
        assert [len(nodes) for nodes in members] == [10] * 4


def test_louvain_deals_whole_communities_to_fewer_clients():
    members = Louvain().members(cliques([12, 8, 6, 5]), 2)
    assert sorted(len(nodes) for nodes in members) == [14, 17]  # 12 + 5 and 8 + 6


def test_louvain_cuts_the_largest_community_for_more_clients():
    members = Louvain().members(cliques([16, 8, 8]), 4)
    assert sorted(len(nodes) for nodes in members) == [8, 8, 8, 8]


def test_random_parts_differ_by_one_node_at_most_and_by_seed():
    members = RandomNodes(seed=1).members(planted(), 7)
    assert {len(nodes) for nodes in members} == {11, 12}
    other = RandomNodes(seed=2).members(planted(), 7)
    assert not np.array_equal(members[0], other[0])


def test_dirichlet_skews_labels_and_keeps_the_minimum():
    dataset = planted(num_nodes=400)
    shares = {}
    for alpha in (0.1, 100.0):
        members = DirichletNodes(alpha=alpha, min_nodes=5).members(dataset, 4)
        assert min(len(nodes) for nodes in members) >= 5
        counts = [np.bincount(dataset.data.y.numpy()[n], minlength=4) for n in members]
        shares[alpha] = np.mean([c.max() / c.sum() for c in counts])
    assert shares[0.1] > 0.5 > 0.35 > shares[100.0]


def test_overlapping_clients_share_their_community_only():
    dataset = cliques([20, 20])
    members = OverlappingMetis(sequence=[10]).members(dataset, 10)
    assert [len(nodes) for nodes in members] == [10] * 10
    halves = [{int(n) // 20 for n in nodes} for nodes in members]
    assert halves[:5] == [halves[0]] * 5
    assert halves[5:] == [halves[5]] * 5
    assert halves[0] != halves[5]
    assert len({tuple(nodes) for nodes in members[:5]}) == 5


def test_overlapping_draws_continue_the_stream_of_earlier_entries():
    dataset = cliques([20, 20])
    first = OverlappingMetis(sequence=[10, 5]).members(dataset, 10)
    alone = OverlappingMetis(sequence=[5]).members(dataset, 5)
    second = OverlappingMetis(sequence=[10, 5]).members(dataset, 5)
    assert np.array_equal(first[0], OverlappingMetis(sequence=[10]).members(dataset, 10)[0])
    assert not np.array_equal(alone[0], second[0])


def test_draw_is_the_position_in_the_sequence():
    assert [Metis().draw(n) for n in (5, 10, 20, 7)] == [0, 1, 2, 0]
    assert OverlappingMetis().draw(30) == 1
    assert RandomNodes().draw(10) == 0


def test_overlapping_wants_a_multiple_of_five():
    with pytest.raises(ValueError, match="multiple of it; got 7"):
        OverlappingMetis().members(planted(), 7)


def test_natural_gives_client_i_graph_i():
    dataset = planted()
    groups = torch.arange(80) // 20
    several = GraphDataset(
        name="several", data=dataset.data, num_classes=4, groups=groups, group_names=tuple("abcd")
    )
    members = NaturalGraphs().members(several, 4)
    assert [nodes.tolist() for nodes in members] == [
        list(range(i, i + 20)) for i in (0, 20, 40, 60)
    ]
    assert [len(nodes) for nodes in NaturalGraphs().members(several, 3)] == [40, 20, 20]
    with pytest.raises(ValueError, match="more than the 4 graphs"):
        NaturalGraphs().members(several, 5)
    with pytest.raises(ValueError, match="single one"):
        NaturalGraphs().members(dataset, 2)


@pytest.mark.parametrize("num_clients", [0, 81])
def test_impossible_numbers_of_clients_are_refused(num_clients):
    with pytest.raises(ValueError, match="num_clients"):
        Metis().members(planted(), num_clients)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DirichletNodes(alpha=0.0),
        lambda: DirichletNodes(alpha=1.0, min_nodes=0),
        lambda: Louvain(resolution=0.0),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_neighbor_lists_ignore_direction_repeats_and_loops():
    links = torch.tensor([[0, 0, 2, 1, 1], [1, 1, 1, 1, 0]])
    offsets, neighbors = neighbor_lists(Data(edge_index=links, y=torch.zeros(4)))
    assert offsets.tolist() == [0, 1, 3, 4, 4]
    assert neighbors.tolist() == [1, 0, 2, 1]


def test_metis_of_a_subgraph_counts_its_nodes():
    nodes = np.arange(0, 80, 2)
    parts = metis(planted().data, 2, nodes=nodes)
    assert len(parts) == 40
    assert set(parts.tolist()) == {0, 1}


def test_nothing_is_recorded_for_an_unknown_graph():
    offsets, neighbors = neighbor_lists(planted().data)
    assert recorded(offsets, neighbors, 10) is None
    assert len(fingerprint(offsets, neighbors)) == 16
