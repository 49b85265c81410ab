import pytest
import torch

from fedsim.functional.neighbour_matching import Holdings, attached, matches


def holdings(own, links):
    """A client's nodes and, for each of them, the names of its neighbours."""
    rows = [row for row, names in enumerate(links) for _ in names]
    neighbours = [name for names in links for name in names]
    return Holdings(torch.tensor(own), torch.tensor(rows), torch.tensor(neighbours))


# the path 1 - 2 - 3 - 4 - 5 between the clients {1, 2}, {3} and {4, 5}, with 2 - 5 besides
FIRST = holdings([1, 2], [[2], [1, 3, 5]])
SECOND = holdings([3], [[2, 4]])
THIRD = holdings([4, 5], [[3, 5], [4, 2]])
ALL = [FIRST, SECOND, THIRD]


def pairs(found, names=((1, 2), (3,), (4, 5))):
    """Matches as pairs of names."""
    return [
        [
            (names[i][u], names[j][v])
            for u, j, v in zip(
                m.rows.tolist(), m.clients.tolist(), m.their_rows.tolist(), strict=True
            )
        ]
        for i, m in enumerate(found)
    ]


def test_nodes_with_a_common_neighbour_match_by_hand():
    assert pairs(matches(ALL, at_least=1, limit=9)) == [
        [(1, 3), (1, 5), (2, 4)],  # 1, 3 and 5 share 2; 2 and 4 share 3 and 5
        [(3, 5), (3, 1)],  # 3 and 5 share 2 and 4: more than 3 and 1
        [(4, 2), (5, 3), (5, 1)],
    ]


def test_the_most_alike_are_taken_first_and_weak_matches_left_out():
    assert pairs(matches(ALL, at_least=1, limit=1)) == [
        [(1, 3), (2, 4)],
        [(3, 5)],
        [(4, 2), (5, 3)],
    ]
    assert pairs(matches(ALL, at_least=2, limit=9)) == [[(2, 4)], [(3, 5)], [(4, 2), (5, 3)]]
    assert pairs(matches(ALL, at_least=1, limit=0)) == [[], [], []]


def test_a_node_that_a_client_holds_itself_is_no_foreign_neighbour():
    twice = holdings([3, 4], [[2, 4], [3, 5]])
    assert pairs(matches([twice, THIRD], at_least=1, limit=9), ((3, 4), (4, 5))) == [
        [(3, 5)],  # not with the other's copy of 4, though it shares everything with 4
        [(5, 3)],
    ]


def test_repeated_links_count_once():
    again = holdings([3], [[2, 2, 2]])
    assert pairs(matches([FIRST, again], at_least=1, limit=9)) == [[(1, 3)], [(3, 1)]]
    assert pairs(matches([FIRST, again], at_least=2, limit=9)) == [[], []]


def test_no_holdings_give_no_matches_and_impossible_numbers_are_refused():
    assert matches([], at_least=1, limit=1) == []
    for wrong in ({"at_least": 0, "limit": 1}, {"at_least": 1, "limit": -1}):
        with pytest.raises(ValueError, match="at_least must be 1 or more"):
            matches(ALL, **wrong)


def test_attached_nodes_are_averaged_with_by_hand():
    values = torch.tensor([[1.0, 0.0], [2.0, 4.0]], requires_grad=True)
    foreign = torch.tensor([[4.0, 0.0], [7.0, 3.0]])
    rows, sources = torch.tensor([0, 0]), torch.tensor([0, 1])
    out = attached(values, foreign, rows, sources)
    assert out.tolist() == [[4.0, 1.0], [2.0, 4.0]]
    out.sum().backward()
    assert values.grad.tolist() == [[pytest.approx(1 / 3)] * 2, [1.0, 1.0]]


def test_without_foreign_nodes_nothing_changes():
    values, none = torch.randn(3, 2), torch.empty(0, dtype=torch.int64)
    assert torch.equal(attached(values, torch.empty(0, 2), none, none), values)
