import math

import pytest
import torch
from torch.testing import assert_close

from fedsim.functional.similarity import cosine_similarity, mix, similarity_weights

THREE = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])


def test_cosine_ignores_length():
    expected = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert_close(cosine_similarity(THREE), expected)
    opposite = torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
    assert_close(cosine_similarity(opposite)[0], torch.tensor([1.0, -1.0]))


def test_cosine_stays_in_range_and_symmetric():
    embeddings = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * 1e3
    cosine = cosine_similarity(embeddings)
    assert float(cosine.max()) <= 1.0
    assert_close(cosine, cosine.t())
    assert_close(cosine.diagonal(), torch.ones(20))
    reference = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
    assert_close(cosine, reference)


def test_a_zero_embedding_is_like_nobody():
    cosine = cosine_similarity(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert_close(cosine[0], torch.zeros(2))


def test_weights_of_two_clients_by_hand():
    weights = similarity_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), scale=2.0)
    own = math.exp(2.0) / (math.exp(2.0) + 1.0)
    assert_close(weights, torch.tensor([[own, 1 - own], [1 - own, own]]))


def test_rows_sum_to_one_and_the_diagonal_is_largest():
    embeddings = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    weights = similarity_weights(embeddings, scale=3.0)
    assert_close(weights.sum(1), torch.ones(7))
    assert weights.argmax(1).tolist() == list(range(7))
    assert float(weights.max() / weights.min()) <= math.exp(6.0) * 1.001


def test_scale_zero_is_the_uniform_mean():
    weights = similarity_weights(THREE, scale=0.0)
    assert_close(weights, torch.full((3, 3), 1 / 3))
    values = torch.tensor([[1.0], [2.0], [6.0]])
    assert_close(mix(weights, values), torch.full((3, 1), 3.0))


def test_mix_by_hand_keeps_shape_and_type():
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    stacked = torch.tensor([[[1.0, 2.0]], [[5.0, 6.0]]], dtype=torch.float64)
    mixed = mix(weights, stacked)
    assert_close(
        mixed, torch.tensor([[[1.0, 2.0]], [[4.0, 5.0]]], dtype=torch.float64), check_dtype=True
    )
    assert_close(mix(weights, torch.tensor([2.0, 4.0])), torch.tensor([2.0, 3.5]))
    assert mix(weights[:1], stacked).shape == (1, 1, 2)


def test_identical_clients_share_their_mean():
    weights = similarity_weights(torch.ones(2, 3), scale=5.0)
    assert_close(mix(weights, torch.tensor([[1.0], [3.0]])), torch.full((2, 1), 2.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[C, d\], got \(3,\)"):
        cosine_similarity(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 1\)"):
        mix(torch.ones(2, 2), torch.ones(3, 1))
