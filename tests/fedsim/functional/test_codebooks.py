import pytest
import torch
from torch import tensor

from fedsim.functional.codebooks import (
    Cells,
    Codebooks,
    assign,
    average,
    draw_cells,
    draw_heads,
    fit_codebooks,
    revive,
    start_codebooks,
)
from fedsim.seeding import generator

HEADS = tensor([[[0.0], [2.0], [10.0]]])
KEYS = tensor([[[1.0], [9.0]]])


def test_assign_adds_up_the_heads_of_every_cell():
    cells = assign(HEADS, KEYS)
    assert cells.counts.tolist() == [[2.0, 1.0]]
    assert cells.sums.tolist() == [[[2.0], [10.0]]]
    assert cells.squares.tolist() == [[[4.0], [100.0]]]


def test_cells_of_two_clients_add_up_to_the_cells_of_their_data():
    heads = torch.randn(3, 20, 2, generator=generator(0, "h"))
    keys = torch.randn(3, 4, 2, generator=generator(0, "k"))
    both = assign(heads[:, :8], keys) + assign(heads[:, 8:], keys)
    whole = assign(heads, keys)
    for name in ("counts", "sums", "squares"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name))


def test_average_by_hand():
    books = Codebooks(keys=KEYS, sums=tensor([[[1.0], [9.0]]]), counts=tensor([[1.0, 1.0]]))
    after = average(books, assign(HEADS, KEYS), decay=0.5)
    assert after.counts.tolist() == [[1.5, 1.0]]
    assert after.sums.tolist() == [[[1.5], [9.5]]]
    torch.testing.assert_close(after.keys, tensor([[[1.0], [9.5]]]), atol=1e-4, rtol=0)


def test_without_decay_it_is_a_step_of_lloyd():
    books = start_codebooks(HEADS, 2, "data", generator(0, "s"))
    after = average(
        Codebooks(keys=KEYS, sums=books.sums, counts=books.counts), assign(HEADS, KEYS), decay=0.0
    )
    torch.testing.assert_close(after.keys, tensor([[[1.0], [10.0]]]), atol=1e-3, rtol=0)


def test_a_revived_key_stays_where_it_was_put():
    """The trap of the reference code: old accumulators drag a revived key away."""
    books = Codebooks(
        keys=tensor([[[0.0], [50.0]]]),
        sums=tensor([[[0.0], [0.05]]]),  # 0.001 examples near 50
        counts=tensor([[10.0, 0.001]]),
    )
    books = revive(books, tensor([[[7.0], [7.0]]]), threshold=0.1)
    assert books.keys.tolist() == [[[0.0], [7.0]]]
    nobody = Cells(
        counts=torch.zeros(1, 2), sums=torch.zeros(1, 2, 1), squares=torch.zeros(1, 2, 1)
    )
    for _ in range(3):
        books = average(books, nobody, decay=0.95)
        assert books.keys[0, 1].item() == pytest.approx(7.0, abs=0.01)


def test_live_keys_are_not_revived():
    books = start_codebooks(HEADS, 2, "data", generator(0, "s"))
    after = revive(books, torch.full((1, 2, 1), 99.0), threshold=1.0)
    assert torch.equal(after.keys, books.keys)


def test_start_from_data_takes_keys_among_the_heads():
    books = start_codebooks(HEADS, 3, "data", generator(0, "s"))
    assert sorted(books.keys.flatten().tolist()) == [0.0, 2.0, 10.0]
    assert torch.equal(books.sums, books.keys)


def test_kmeans_start_finds_the_centres():
    points = torch.cat([torch.randn(50, 2, generator=generator(0, c)) * 0.01 + c for c in (0, 5)])
    books = start_codebooks(points[None], 2, "kmeans", generator(1, "s"))
    centres = books.keys[0].sort(dim=0).values
    torch.testing.assert_close(centres, tensor([[0.0, 0.0], [5.0, 5.0]]), atol=0.1, rtol=0)


def test_unknown_start_is_an_error():
    with pytest.raises(ValueError, match="normal, data or kmeans"):
        start_codebooks(HEADS, 2, "zeros", generator(0, "s"))


@pytest.mark.parametrize(
    "start", ["normal", "data", "kmeans"], ids=["drawn", "examples", "centres"]
)
def test_fitted_keys_use_every_pair(start):
    rng = generator(0, "points")
    batches = [torch.rand(3, 100, 2, generator=rng) * 4 - 20 for _ in range(60)]
    keys = fit_codebooks(
        batches, pairs=10, decay=0.8, dead_share=0.1, start=start, rng=generator(0, "fit")
    )
    cells = assign(torch.cat(batches, dim=1), keys)
    assert bool((cells.counts > 0.1 * 6000 / 10).all())
    assert bool((keys >= -20).all() & (keys <= -16).all())


def test_drawn_cells_have_the_moments_of_the_data_without_the_data():
    heads = torch.randn(2, 4000, 2, generator=generator(0, "h")) * 0.5 + 3
    cells = assign(heads, torch.zeros(2, 1, 2))
    drawn = draw_cells(cells, 4000, generator(0, "d"))
    torch.testing.assert_close(drawn.mean(dim=1), heads.mean(dim=1), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(dim=1), heads.std(dim=1), atol=0.05, rtol=0)


def test_heads_are_drawn_without_repeats_where_there_are_enough():
    heads = torch.arange(6.0).view(1, 6, 1)
    assert sorted(draw_heads(heads, 6, generator(0, "d")).flatten().tolist()) == list(range(6))
    assert draw_heads(heads, 8, generator(0, "d")).shape == (1, 8, 1)
