"""Discrete key-value bottleneck: fixed heads, key look-up, votes of values.

Source of all of it: Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240.
Letters: ``B`` codebooks, ``M`` pairs in each, ``k`` pairs fetched per codebook, ``n`` examples,
``d`` features, ``q`` numbers in a key, ``v`` numbers in a value, ``T`` tokens of an example (1 for
pooled features). A *row* numbers a pair among all
``B * M`` pairs: pair ``j`` of codebook ``b`` is row ``b * M + j``.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 1 << 20  # distances held in memory at a time, so that they stay in a CPU's cache
GPU_BLOCK = 1 << 26  # on accelerators, which small pieces keep waiting
PIECE = 64  # distances of which the minimum is taken first


def gaussian_projections(
    num_features: int, codebooks: int, key_size: int, rng: torch.Generator
) -> Tensor:
    """One random matrix per codebook, every column of length 1.

    Args:
        num_features: ``d``.
        codebooks: ``B``.
        key_size: ``q``.
        rng: Draws the entries.

    Returns:
        ``[B, d, q]``.
    """
    matrices = torch.randn(codebooks, num_features, key_size, generator=rng)
    return functional.normalize(matrices, dim=1)


def project(features: Tensor, projections: Tensor) -> Tensor:
    """What every codebook sees of the features, ``h_b = R_b^T z``.

    Args:
        features: ``[n, d]``.
        projections: ``[B, d, q]``.

    Returns:
        Heads, ``[B, n, q]``.
    """
    return torch.einsum("nd,bdq->bnq", features, projections)


def chunk(features: Tensor, codebooks: int) -> Tensor:
    """The features cut into one piece per codebook, ``[B, n, d / B]``.

    Args:
        features: ``[n, d]``.
        codebooks: ``B``.

    Raises:
        ValueError: If ``B`` does not divide ``d``.
    """
    n, width = features.shape
    if width % codebooks:
        raise ValueError(f"{width} features cannot be cut into {codebooks} equal chunks")
    return features.reshape(n, codebooks, -1).transpose(0, 1).contiguous()


def to_tokens(features: Tensor, tokens: int) -> Tensor:
    """The pixels of flattened feature maps as vectors of their own, those of an example in a row.

    Args:
        features: Maps ``[c, T]`` of every example, flattened, ``[n, c * T]``.
        tokens: ``T``; with ``1`` the features stay as they are.

    Returns:
        ``[n * T, c]``.

    Raises:
        ValueError: If ``T`` does not divide the features.
    """
    n, width = features.shape
    if width % tokens:
        raise ValueError(f"{width} features cannot be cut into {tokens} tokens")
    if tokens == 1:
        return features
    return features.view(n, -1, tokens).transpose(1, 2).reshape(n * tokens, -1)


def nearest_pairs(heads: Tensor, keys: Tensor, k: int = 1, allowed: Tensor | None = None) -> Tensor:
    """The ``k`` pairs of every codebook whose keys are nearest, the nearest first.

    Squared Euclidean distance; of equal distances the lowest pair wins for ``k = 1``. Where fewer
    than ``k`` pairs are allowed, others follow in no particular order.

    Args:
        heads: ``[B, n, q]``.
        keys: ``[B, M, q]``.
        k: Pairs fetched per codebook, in ``[1, M]``.
        allowed: Bool ``[B, M]``: pairs that may be fetched; None allows all.

    Returns:
        Pair numbers in ``[0, M)``, int64, ``[B, n, k]``.

    Raises:
        ValueError: If ``k`` is out of range.
    """
    codebooks, n, _ = heads.shape
    pairs = keys.shape[1]
    if not 1 <= k <= pairs:
        raise ValueError(f"top_k must lie in [1, {pairs}] (the pairs of a codebook), got {k}")
    # |h|^2 is the same for every key, so the score |k|^2 - 2 h k is enough: one matrix product
    lengths = keys.square().sum(dim=2, keepdim=True)
    if allowed is not None:
        lengths = lengths.masked_fill(~allowed[..., None], torch.inf)
    table = torch.cat([keys, lengths], dim=2).transpose(1, 2)
    query = torch.cat([-2.0 * heads, torch.ones_like(heads[..., :1])], dim=2)
    found = torch.empty(codebooks, n, k, dtype=torch.int64, device=heads.device)
    block = BLOCK if heads.device.type == "cpu" else GPU_BLOCK
    rows = max(min(n, block // pairs), 1)
    group = max(block // (pairs * rows), 1)
    # one buffer for all blocks: fresh memory for every block would cost more than the product
    buffer = heads.new_empty(min(group, codebooks) * rows * pairs)
    for b in range(0, codebooks, group):
        books = slice(b, b + group)
        for i in range(0, n, rows):
            part = query[books, i : i + rows]
            shape = (*part.shape[:2], pairs)
            scores = buffer[: math.prod(shape)].view(shape)
            torch.bmm(part, table[books], out=scores)
            if k == 1:
                found[books, i : i + rows, 0] = _smallest(scores)
            else:
                found[books, i : i + rows] = scores.topk(k, dim=2, largest=False).indices
    return found


def _smallest(scores: Tensor) -> Tensor:
    """Position of the smallest entry of every row ``[b, n, M]``, the first among equals.

    The minimum of pieces and then the position inside the best piece: several times as fast on a
    CPU as ``argmin`` over the whole row.
    """
    b, n, pairs = scores.shape
    if pairs % PIECE:
        return scores.argmin(dim=2)
    pieces = scores.view(b, n, pairs // PIECE, PIECE)
    best = pieces.amin(dim=3).argmin(dim=2, keepdim=True)
    piece = pieces.gather(2, best[..., None].expand(b, n, 1, PIECE))[:, :, 0]
    return best[..., 0] * PIECE + piece.argmin(dim=2)


def to_rows(pairs: Tensor, num_pairs: int) -> Tensor:
    """Pair numbers of every codebook as row numbers of one table.

    Args:
        pairs: ``[B, n, k]``.
        num_pairs: ``M``.

    Returns:
        int32, ``[n, B * k]``, codebook by codebook.
    """
    codebooks, n, k = pairs.shape
    offsets = torch.arange(codebooks, device=pairs.device).view(-1, 1, 1) * num_pairs
    return (pairs + offsets).permute(1, 0, 2).reshape(n, codebooks * k).to(torch.int32)


def vote(
    values: Tensor, rows: Tensor, codebooks: int, *, tokens: int = 1, sparse: bool = False
) -> Tensor:
    """Logits without a trained decoder, ``1 / (B T) sum_b sum_t sum_j values[rows[t, b, j]]``.

    This is the bottleneck's exact fast form: an ``EmbeddingBag`` over rows that never change.

    Args:
        values: ``[B * M, v]``.
        rows: ``[n, T * B * k]``.
        codebooks: ``B``.
        tokens: ``T``.
        sparse: Give ``values`` a sparse gradient, which ``torch.optim.SGD`` without momentum and
            weight decay takes: the cost of a step then depends on the batch, not on the table.

    Returns:
        ``[n, v]``.
    """
    mean = functional.embedding_bag(rows, values, mode="mean", sparse=sparse)
    fetched = rows.shape[1] // (codebooks * tokens)
    return mean if fetched == 1 else mean * fetched


def fetch(
    values: Tensor, rows: Tensor, codebooks: int, *, tokens: int = 1, sparse: bool = False
) -> Tensor:
    """The fetched values, summed within a codebook, averaged over tokens, codebooks side by side.

    Args:
        values: ``[B * M, v]``.
        rows: ``[n, T * B * k]``.
        codebooks: ``B``.
        tokens: ``T``.
        sparse: See :func:`vote`.

    Returns:
        ``[n, B * v]``.
    """
    found = functional.embedding(rows, values, sparse=sparse)
    found = found.reshape(len(rows), tokens, codebooks, -1, values.shape[1])
    return found.sum(dim=3).mean(dim=1).flatten(1)


def add_columns(values: Tensor, columns: int) -> Tensor:
    """The table with further columns of zeros, for classes that nobody knew of.

    Votes of the other classes stay as they were; nobody votes for the new ones yet.

    Args:
        values: ``[B * M, v]``.
        columns: How many to add.

    Returns:
        ``[B * M, v + columns]``.
    """
    return functional.pad(values, (0, columns))


def fetch_counts(rows: Tensor, num_rows: int) -> Tensor:
    """How often every row is fetched, int64 ``[num_rows]``.

    Args:
        rows: Row numbers, any shape.
        num_rows: ``B * M``.
    """
    return torch.bincount(rows.flatten(), minlength=num_rows)


def most_fetched(counts: Tensor, codebooks: int, per_codebook: int) -> Tensor:
    """The rows of every codebook that were fetched most, to be masked for unlearning.

    Args:
        counts: Fetches by the examples to be forgotten, ``[B * M]``.
        codebooks: ``B``.
        per_codebook: Rows to take from every codebook; rows never fetched are not taken.

    Returns:
        Bool ``[B * M]``.

    Source:
        Shah et al., Unlearning via Sparse Representations, 2023, arXiv:2311.15268.
    """
    table = counts.view(codebooks, -1)
    top = table.topk(min(per_codebook, table.shape[1]), dim=1)
    mask = torch.zeros_like(table, dtype=torch.bool)
    mask.scatter_(1, top.indices, top.values > 0)
    return mask.flatten()
