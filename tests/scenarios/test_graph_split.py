import pytest
import torch

from scenarios.graph_data import GraphDataset
from scenarios.graph_split import OwnSplit, RandomSplit
from tests.scenarios.graph_toy import planted


def test_shares_of_the_permutation_are_train_test_val_in_that_order():
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1234))
    roles = RandomSplit(train=0.2, test=0.4).roles(planted(), 0)
    assert torch.bincount(roles).tolist() == [16, 32, 32]  # train, val, test
    assert set(roles[order[:16]].tolist()) == {0}
    assert set(roles[order[16:48]].tolist()) == {2}
    assert set(roles[order[48:]].tolist()) == {1}


def test_later_draws_take_the_next_permutation_of_the_stream():
    torch.manual_seed(1234)
    torch.randperm(80)
    second = torch.randperm(80)
    roles = RandomSplit(train=0.2, test=0.4).roles(planted(), 1)
    assert set(roles[second[:16]].tolist()) == {0}


def test_own_split_reads_the_masks_of_a_column():
    data = planted().data
    masks = torch.zeros(80, 2, dtype=torch.bool)
    for i, name in enumerate(("train_mask", "val_mask", "test_mask")):
        data[name] = masks.clone()
        data[name][10 * i : 10 * i + 10, 1] = True
    dataset = GraphDataset(name="own", data=data, num_classes=4)
    roles = OwnSplit(column=1).roles(dataset, 0)
    assert roles[:10].tolist() == [0] * 10
    assert roles[20:30].tolist() == [2] * 10
    assert roles[30:].tolist() == [-1] * 50
    with pytest.raises(ValueError, match="has 2 splits"):
        OwnSplit(column=2).roles(dataset, 0)
    with pytest.raises(ValueError, match="no train_mask"):
        OwnSplit().roles(planted(), 0)


@pytest.mark.parametrize("shares", [(0.0, 0.4), (0.7, 0.4), (0.2, -0.1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="must be positive"):
        RandomSplit(train=shares[0], test=shares[1])
