import pytest
import torch
from torch import tensor

from fedsim.functional.keyvalue import (
    add_columns,
    chunk,
    fetch,
    fetch_counts,
    gaussian_projections,
    most_fetched,
    nearest_pairs,
    project,
    to_rows,
    to_tokens,
    vote,
)
from fedsim.seeding import generator


def test_columns_of_a_projection_have_length_one():
    matrices = gaussian_projections(30, 4, 5, generator(0, "p"))
    assert matrices.shape == (4, 30, 5)
    torch.testing.assert_close(matrices.square().sum(dim=1), torch.ones(4, 5))


def test_project_is_the_transposed_matrix_times_the_features():
    matrices = gaussian_projections(6, 3, 2, generator(0, "p"))
    z = torch.randn(1, 6, generator=generator(0, "z"))
    torch.testing.assert_close(project(z, matrices)[2, 0], matrices[2].T @ z[0])


def test_chunks_are_consecutive_pieces():
    heads = chunk(tensor([[1.0, 2.0, 3.0, 4.0]]), 2)
    assert heads.tolist() == [[[1.0, 2.0]], [[3.0, 4.0]]]
    with pytest.raises(ValueError, match="4 features cannot be cut into 3"):
        chunk(torch.zeros(1, 4), 3)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("pairs", [17, 256])
def test_nearest_pairs_are_those_of_the_full_distance_matrix(k, pairs):
    heads = torch.randn(5, 40, 3, generator=generator(0, "h"))
    keys = torch.randn(5, pairs, 3, generator=generator(0, "k"))
    expected = torch.cdist(heads, keys).topk(k, dim=2, largest=False).indices
    assert torch.equal(nearest_pairs(heads, keys, k), expected)


def test_blocks_do_not_change_the_result(monkeypatch):
    heads = torch.randn(5, 40, 3, generator=generator(0, "h"))
    keys = torch.randn(5, 17, 3, generator=generator(0, "k"))
    whole = nearest_pairs(heads, keys)
    monkeypatch.setattr("fedsim.functional.keyvalue.BLOCK", 17 * 7)
    assert torch.equal(nearest_pairs(heads, keys), whole)


@pytest.mark.parametrize("pairs", [17, 256])
def test_of_equal_distances_the_lowest_pair_wins(pairs):
    keys = torch.zeros(2, pairs, 3)
    assert nearest_pairs(torch.ones(2, 4, 3), keys).unique().tolist() == [0]


def test_pairs_that_are_not_allowed_are_passed_over():
    keys = tensor([[[0.0], [1.0], [5.0]]])
    allowed = tensor([[False, False, True]])
    assert nearest_pairs(tensor([[[0.1]]]), keys).item() == 0
    assert nearest_pairs(tensor([[[0.1]]]), keys, 1, allowed).item() == 2


def test_top_k_outside_the_codebook_is_an_error():
    with pytest.raises(ValueError, match="top_k must lie in"):
        nearest_pairs(torch.zeros(1, 1, 1), torch.zeros(1, 2, 1), 3)


def test_rows_number_the_pairs_of_all_codebooks():
    pairs = tensor([[[1, 0]], [[2, 1]]])  # two codebooks, one example, two pairs each
    assert to_rows(pairs, 10).tolist() == [[1, 0, 12, 11]]


def test_vote_is_the_mean_over_codebooks_of_the_sum_over_fetched_values():
    values = torch.arange(8.0).view(4, 2)
    rows = tensor([[0, 1, 2, 3]], dtype=torch.int32)  # two codebooks, two pairs each
    expected = ((values[0] + values[1]) + (values[2] + values[3])) / 2
    torch.testing.assert_close(vote(values, rows, 2)[0], expected)


def test_fetch_puts_codebooks_side_by_side():
    values = torch.arange(8.0).view(4, 2)
    rows = tensor([[0, 1, 2, 3]], dtype=torch.int32)
    assert fetch(values, rows, 2).tolist() == [[0 + 2, 1 + 3, 4 + 6, 5 + 7]]


def test_tokens_are_the_pixels_of_a_flattened_map():
    maps = tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], [[4.0, 5.0, 6.0], [40.0, 50.0, 60.0]]])
    tokens = to_tokens(maps.flatten(1), 3)  # two examples of two channels and three pixels
    assert tokens.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]
    assert torch.equal(to_tokens(tokens, 1), tokens)
    with pytest.raises(ValueError, match="6 features cannot be cut into 4 tokens"):
        to_tokens(maps.flatten(1), 4)


def test_votes_and_values_are_averaged_over_tokens():
    values = tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 10.0], [0.0, 30.0]])
    # one example, two tokens, two codebooks of two pairs: the first token fetches pairs 0 and 0,
    # the second 1 and 1
    rows = tensor([[0, 2, 1, 3]], dtype=torch.int32)
    assert vote(values, rows, 2, tokens=2).tolist() == [[(1 + 3) / 4, (10 + 30) / 4]]
    assert fetch(values, rows, 2, tokens=2).tolist() == [[2.0, 0.0, 0.0, 20.0]]
    # read as one token with two pairs a codebook the same rows are summed within the codebook
    assert vote(values, rows, 2).tolist() == [[(1 + 3) / 2, (10 + 30) / 2]]


def test_new_classes_leave_the_votes_of_the_old_ones():
    values = torch.randn(6, 3, generator=generator(0, "v"))
    rows = tensor([[0, 4], [2, 5]], dtype=torch.int32)
    grown = vote(add_columns(values, 2), rows, 2)
    torch.testing.assert_close(grown[:, :3], vote(values, rows, 2))
    assert torch.equal(grown[:, 3:], torch.zeros(2, 2))


def test_most_fetched_takes_the_top_of_every_codebook_and_no_unused_row():
    counts = fetch_counts(tensor([[0, 0, 1, 4]]), 6)
    assert counts.tolist() == [2, 1, 0, 0, 1, 0]
    assert most_fetched(counts, 2, 1).tolist() == [True, False, False, False, True, False]
    assert most_fetched(counts, 2, 2).tolist() == [True, True, False, False, True, False]
