from scenarios.order import SameOrder, ShuffledOrder


def sequence(order, client, seed=0, n=6):
    return [order.experience_at(client, position, n, seed) for position in range(n)]


def test_same_order_is_the_scenarios():
    assert sequence(SameOrder(), 3) == [0, 1, 2, 3, 4, 5]


def test_shuffled_order_is_a_permutation_per_client():
    orders = [sequence(ShuffledOrder(), c) for c in range(20)]
    assert all(sorted(o) == [0, 1, 2, 3, 4, 5] for o in orders)
    assert len({tuple(o) for o in orders}) > 10
    assert orders == [sequence(ShuffledOrder(), c) for c in range(20)]
    assert orders != [sequence(ShuffledOrder(), c, seed=1) for c in range(20)]
