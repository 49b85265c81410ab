import pytest
import torch
from torch import tensor

from fedsim.functional.rows import RowUpdate, merge_rows, overlay

TABLE = tensor([[1.0], [2.0], [3.0], [4.0]])
FIRST = RowUpdate(
    indices=tensor([0, 1]), deltas=tensor([[1.0], [1.0]]), counts=tensor([1.0, 3.0]), num_examples=1
)
SECOND = RowUpdate(
    indices=tensor([1, 2]), deltas=tensor([[5.0], [1.0]]), counts=tensor([1.0, 2.0]), num_examples=3
)


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("sum", [2.0, 8.0, 4.0, 4.0]),
        ("count_weighted", [2.0, 2.0 + (3 * 1 + 1 * 5) / 4, 4.0, 4.0]),
        ("fedavg", [1.25, 2.0 + (1 * 1 + 3 * 5) / 4, 3.75, 4.0]),
    ],
)
def test_merges_by_hand(merge, expected):
    assert merge_rows(TABLE, [FIRST, SECOND], merge).flatten().tolist() == expected


@pytest.mark.parametrize("merge", ["sum", "count_weighted", "fedavg"])
def test_rows_that_nobody_touched_keep_their_bits(merge):
    table = torch.randn(1000, 3)
    table[7] = -0.0
    update = RowUpdate(
        indices=tensor([3, 500]), deltas=torch.randn(2, 3), counts=torch.ones(2), num_examples=2
    )
    merged = merge_rows(table, [update, update], merge)
    others = torch.ones(1000, dtype=torch.bool)
    others[update.indices] = False
    same = merged[others].view(torch.int32) == table[others].view(torch.int32)
    assert bool(same.all())
    assert not torch.equal(merged[3], table[3])


def test_fedavg_equals_the_average_of_whole_tables():
    tables = []
    for update in (FIRST, SECOND):
        own = TABLE.clone()
        own[update.indices] += update.deltas
        tables.append(own * update.num_examples / 4)
    torch.testing.assert_close(merge_rows(TABLE, [FIRST, SECOND], "fedavg"), sum(tables))


@pytest.mark.parametrize("merge", ["sum", "count_weighted", "fedavg"])
def test_one_client_alone_is_taken_over_by_every_merge(merge):
    assert merge_rows(TABLE, [FIRST], merge).flatten().tolist() == [2.0, 3.0, 3.0, 4.0]


def test_faulty_updates_are_refused():
    with pytest.raises(ValueError, match="merge must be one of"):
        merge_rows(TABLE, [FIRST], "median")
    outside = RowUpdate(
        indices=tensor([4]), deltas=tensor([[1.0]]), counts=tensor([1.0]), num_examples=1
    )
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        merge_rows(TABLE, [outside], "sum")
    narrow = RowUpdate(
        indices=tensor([0]), deltas=torch.zeros(1, 2), counts=tensor([1.0]), num_examples=1
    )
    with pytest.raises(ValueError, match="needs deltas"):
        merge_rows(TABLE, [narrow], "sum")


def test_overlay_is_the_written_table_at_the_wanted_rows():
    indices, values = tensor([1, 3]), tensor([[20.0], [40.0]])
    assert overlay(TABLE, indices, values, tensor([3, 0, 1])).flatten().tolist() == [
        40.0,
        1.0,
        20.0,
    ]
    none = torch.empty(0, dtype=torch.int64), torch.empty(0, 1)
    assert overlay(TABLE, *none, tensor([2])).tolist() == [[3.0]]
