import pytest
import torch

from fedsim.functional.neighbour_generation import chosen, mended, nearest, reconstruction

REAL = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
MADE = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [9.0, 9.0]]])


def test_the_nearest_candidate_that_counts():
    assert nearest(MADE, REAL).tolist() == [[0, 1], [2, 1]]
    allowed = torch.tensor([[True, False, True], [False, True, False]])
    assert nearest(MADE, REAL, allowed).tolist() == [[0, 0], [1, 1]]


def test_reconstruction_by_hand():
    # node 0: 1 to (0, 0) and 1 to (4, 0); node 1: 1 to (0, 3), the second one is not asked for
    assert reconstruction(MADE, torch.tensor([2, 1]), REAL).item() == pytest.approx(3 / 2)
    assert reconstruction(MADE, torch.tensor([7, 0]), REAL).item() == pytest.approx(2 / 2)


def test_only_own_hidden_neighbours_count_and_nodes_without_add_nothing():
    allowed = torch.tensor([[True, False, False], [False, False, False]])
    value = reconstruction(MADE, torch.tensor([2, 2]), REAL, allowed)
    assert value.item() == pytest.approx((1 + 9) / 2)


def test_its_gradient_points_away_from_the_nearest():
    made = MADE.clone().requires_grad_()
    reconstruction(made, torch.tensor([2, 1]), REAL).backward()
    assert made.grad.tolist() == [[[1.0, 0.0], [-1.0, 0.0]], [[0.0, -1.0], [0.0, 0.0]]]


def test_without_candidates_it_is_zero_with_a_gradient():
    made = MADE.clone().requires_grad_()
    value = reconstruction(made, torch.tensor([2, 1]), torch.empty(0, 2))
    value.backward()
    assert value.item() == 0
    assert torch.equal(made.grad, torch.zeros_like(MADE))


def test_mending_links_every_new_node_both_ways():
    features, rows = chosen(MADE, torch.tensor([1, 2]))
    assert features.tolist() == [[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]
    assert rows.tolist() == [0, 1, 1]
    x, links = mended(REAL[:2], torch.tensor([[0, 1], [1, 0]]), features, rows)
    assert torch.equal(x, torch.cat([REAL[:2], features]))
    found = sorted(map(tuple, links.t().tolist()))
    assert found == [(0, 1), (0, 2), (1, 0), (1, 3), (1, 4), (2, 0), (3, 1), (4, 1)]


def test_nothing_new_leaves_the_graph_alone():
    links = torch.tensor([[0, 1], [1, 0]])
    features, rows = chosen(MADE, torch.tensor([0, 0]))
    x, same = mended(REAL, links, features, rows)
    assert torch.equal(x, REAL)
    assert torch.equal(same, links)
