"""Similarity between clients, and averages weighted by it."""

import torch
from torch import Tensor
from torch.nn import functional


def cosine_similarity(embeddings: Tensor) -> Tensor:
    """Cosine between every pair of rows.

    ``S_ij = <e_i, e_j> / (|e_i| |e_j|)``; a row of zeros has similarity 0 to all, itself included.

    >>> cosine_similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([[1., 0.],
            [0., 1.]])

    Args:
        embeddings: One row per client. Shape ``[C, d]``.

    Returns:
        Similarities in ``[-1, 1]``, shape ``[C, C]``, symmetric.

    Raises:
        ValueError: If ``embeddings`` is not two-dimensional.
    """
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings must have shape [C, d], got {tuple(embeddings.shape)}")
    unit = functional.normalize(embeddings, dim=1)
    return (unit @ unit.t()).clamp(-1.0, 1.0)


def similarity_weights(embeddings: Tensor, scale: float) -> Tensor:
    """Row-stochastic aggregation weights between clients.

    ``w_ij = exp(scale * cos(e_i, e_j)) / sum_k exp(scale * cos(e_i, e_k))``

    Args:
        embeddings: Functional embeddings, one row per client. Shape ``[C, d]``.
        scale: Inverse temperature ``tau``, unitless; ``0`` gives the uniform mean.

    Returns:
        Weights, shape ``[C, C]``; each row sums to one.

    Raises:
        ValueError: If ``embeddings`` is not two-dimensional.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206.
    """
    return torch.softmax(scale * cosine_similarity(embeddings), dim=1)


def mix(weights: Tensor, stacked: Tensor) -> Tensor:
    """Every client's own weighted sum of all clients' tensors.

    ``out_i = sum_j w_ij x_j``

    Args:
        weights: Shape ``[C', C]``; row ``i`` makes the result of client ``i``.
        stacked: One tensor per client. Shape ``[C, ...]``, floating point.

    Returns:
        Shape ``[C', ...]``, in the type of ``stacked``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if weights.dim() != 2 or stacked.dim() < 1 or weights.shape[1] != stacked.shape[0]:
        raise ValueError(
            f"weights [C', C] and tensors [C, ...] expected, got {tuple(weights.shape)} and"
            f" {tuple(stacked.shape)}"
        )
    mixed = weights.to(stacked.dtype) @ stacked.reshape(len(stacked), -1)
    return mixed.reshape(len(weights), *stacked.shape[1:])
