import tracemalloc

import numpy as np
import pytest
import torch

from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder, ShuffledOrder
from scenarios.partition import IID, Dirichlet
from scenarios.task_incremental import TaskIncremental
from scenarios.toy import toy


def make(cls=ClassIncremental, *, seed=0, num_clients=4, num_experiences=3, order=None, **options):
    return cls(
        dataset=toy(num_classes=7, shape=[1, 4, 4], train_examples=140, test_examples=70),
        partition=Dirichlet(alpha=0.5),
        order=order or SameOrder(),
        num_clients=num_clients,
        num_experiences=num_experiences,
        seed=seed,
        **options,
    )


def test_classes_are_disjoint_and_complete():
    scenario = make()
    classes = [scenario.classes(e) for e in range(3)]
    assert [len(c) for c in classes] == [3, 2, 2]
    assert sorted(c for part in classes for c in part) == list(range(7))


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_fall_into_the_experience_of_their_class(split):
    scenario = make()
    targets = scenario.targets(split).numpy()
    pooled = []
    for e in range(3):
        indices = scenario.indices(None, e, split)
        assert sorted(set(targets[indices])) == scenario.classes(e)
        parts = [scenario.indices(c, e, split) for c in range(4)]
        assert np.array_equal(np.sort(np.concatenate(parts)), indices)
        pooled.append(indices)
    assert np.array_equal(np.sort(np.concatenate(pooled)), np.arange(len(targets)))


def test_class_order_may_be_given():
    assert make(class_order="sorted").classes(0) == [0, 1, 2]
    assert make(class_order=[6, 5, 4, 3, 2, 1, 0]).classes(0) == [4, 5, 6]
    shuffled = [[make(seed=s).classes(e) for e in range(3)] for s in (0, 0, 1)]
    assert shuffled[0] == shuffled[1]
    assert shuffled[0] != shuffled[2]


def test_number_of_classes_may_be_given():
    scenario = make(class_order="sorted", classes_per_experience=[1, 4, 2])
    assert [scenario.classes(e) for e in range(3)] == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experiences": 8}, "num_experiences=8 is more than the 7 classes"),
        ({"num_experiences": 0}, "num_experiences must be at least 1, got 0"),
        ({"class_order": [0, 1]}, "must name each class 0..6 once"),
        ({"class_order": "random"}, "sorted, shuffled or a list, got 'random'"),
        ({"classes_per_experience": [3, 3]}, "3 positive numbers that add up to 7"),
        ({"num_clients": 141}, "num_clients=141"),
    ],
)
def test_what_cannot_work_fails_in_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_shard_holds_the_examples_of_its_indices():
    scenario = make()
    shard = scenario.shard(2, 1, "train")
    assert np.array_equal(shard.indices, scenario.indices(2, 1, "train"))
    assert torch.equal(shard.inputs, scenario.dataset.train.take(shard.indices))
    assert torch.equal(shard.targets, scenario.targets("train")[torch.from_numpy(shard.indices)])
    assert shard.tasks is None
    assert scenario.input_shape == (1, 4, 4)


def test_task_labels_are_told_only_by_task_incremental():
    plain, told = make(), make(TaskIncremental)
    assert plain.task_classes is None
    assert told.task_classes.shape == (3, 7)
    for e in range(3):
        assert torch.nonzero(told.task_classes[e]).flatten().tolist() == told.classes(e)
        assert set(told.shard(None, e, "test").tasks.tolist()) == {e}
    assert torch.equal(told.task_classes.sum(0), torch.ones(7, dtype=torch.long))


def test_clients_may_meet_experiences_in_orders_of_their_own():
    scenario = make(order=ShuffledOrder())
    orders = {tuple(scenario.experience_at(c, i) for i in range(3)) for c in range(4)}
    assert len(orders) > 1
    assert all(sorted(o) == [0, 1, 2] for o in orders)


@pytest.mark.parametrize(("client", "experience"), [(4, 0), (-1, 0), (0, 3), (0, -1)])
def test_unknown_client_or_experience_is_an_error(client, experience):
    with pytest.raises(ValueError, match="must lie in"):
        make().indices(client, experience, "train")


def test_many_clients_take_no_memory_each():
    data = toy(num_classes=10, shape=[1], train_examples=100_000, test_examples=10_000)

    def kept(num_clients):
        tracemalloc.start()
        scenario = ClassIncremental(
            dataset=data,
            partition=IID(),
            order=ShuffledOrder(),
            num_clients=num_clients,
            num_experiences=5,
            seed=0,
        )
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(scenario.indices(num_clients - 1, 0, "train")) >= 0
        return size

    assert kept(100_000) - kept(10) < 2 * 8 * 100_000 + 100_000  # an offset per client and split
