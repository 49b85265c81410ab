"""Keys of a discrete key-value bottleneck: fitted once on unlabelled features, then frozen.

Letters as in :mod:`fedsim.functional.keyvalue`.

Source:
    Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240; the moving average
    is van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937. The
    dead-code rule differs from the authors' code, which replaces a dead key but not its
    accumulators, so that the old ones drag the new key away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.functional.keyvalue import nearest_pairs

KeyStart = Literal["normal", "data", "kmeans"]
KMEANS_STEPS = 10
SMOOTHING = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """What the examples nearest to every key add up to; two of them can be added.

    Attributes:
        counts: Examples, ``[B, M]``.
        sums: Sum of their heads, ``[B, M, q]``.
        squares: Sum of their squared heads, ``[B, M, q]``.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __add__(self, other: "Cells") -> "Cells":
        return Cells(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebooks:
    """Keys and the moving averages behind them.

    Attributes:
        keys: ``[B, M, q]``.
        sums: ``[B, M, q]``, the average of the sums of the assigned heads.
        counts: ``[B, M]``, the average of their numbers.
    """

    keys: Tensor
    sums: Tensor
    counts: Tensor


def assign(heads: Tensor, keys: Tensor) -> Cells:
    """Add up the heads in the cell of their nearest key.

    Args:
        heads: ``[B, n, q]``.
        keys: ``[B, M, q]``.
    """
    codebooks, pairs, size = keys.shape
    rows = nearest_pairs(heads, keys)[..., 0]
    rows = rows + torch.arange(codebooks, device=rows.device)[:, None] * pairs
    flat, vectors = rows.flatten(), heads.reshape(-1, size)

    def added(x: Tensor) -> Tensor:
        zeros = torch.zeros(codebooks * pairs, size, dtype=heads.dtype, device=heads.device)
        return zeros.index_add_(0, flat, x).view(codebooks, pairs, size)

    counts = torch.bincount(flat, minlength=codebooks * pairs).view(codebooks, pairs)
    return Cells(
        counts=counts.to(heads.dtype), sums=added(vectors), squares=added(vectors.square())
    )


def start_codebooks(heads: Tensor, pairs: int, start: KeyStart, rng: torch.Generator) -> Codebooks:
    """Codebooks before the first step.

    ``normal`` draws standard normal keys with empty averages, so that the dead-code rule replaces
    those that the first batch does not use. ``data`` draws the keys among the heads and sets
    ``counts = 1, sums = keys``; ``kmeans`` does so and takes ten steps of Lloyd's algorithm.

    Args:
        heads: A batch of heads, ``[B, n, q]``.
        pairs: ``M``.
        start: Which of the three.
        rng: Draws the keys.

    Raises:
        ValueError: If ``start`` is none of the three.
    """
    codebooks, _, size = heads.shape
    if start == "normal":
        keys = torch.randn(codebooks, pairs, size, generator=rng).to(heads)
        none = torch.zeros(codebooks, pairs, dtype=heads.dtype, device=heads.device)
        return Codebooks(keys=keys, sums=torch.zeros_like(keys), counts=none)
    if start not in ("data", "kmeans"):
        raise ValueError(f"keys start must be normal, data or kmeans, got {start!r}")
    keys = draw_heads(heads, pairs, rng)
    for _ in range(KMEANS_STEPS if start == "kmeans" else 0):
        cells = assign(heads, keys)
        filled = cells.counts > 0
        keys[filled] = cells.sums[filled] / cells.counts[filled][:, None]
    return Codebooks(keys=keys, sums=keys.clone(), counts=torch.ones_like(keys[..., 0]))


def draw_heads(heads: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Heads drawn per codebook, ``[B, count, q]``; without repeats where there are enough."""
    codebooks, n, _ = heads.shape
    rounds = -(-count // n)
    picks = torch.stack(
        [
            torch.cat([torch.randperm(n, generator=rng) for _ in range(rounds)])[:count]
            for _ in range(codebooks)
        ]
    ).to(heads.device)
    return heads[torch.arange(codebooks, device=heads.device)[:, None], picks].clone()


def draw_cells(cells: Cells, count: int, rng: torch.Generator) -> Tensor:
    """Points drawn like the heads that were added up, without seeing any head.

    A cell is drawn in proportion to its examples, then a point of the Gaussian with the cell's mean
    and variance per coordinate.

    Args:
        cells: At least one example per codebook.
        count: Points per codebook.
        rng: Draws cells and points.

    Returns:
        ``[B, count, q]``.
    """
    picks = torch.multinomial(cells.counts.cpu(), count, replacement=True, generator=rng)
    picks = picks.to(cells.counts.device)
    books = torch.arange(len(picks), device=picks.device)[:, None]
    number = cells.counts[books, picks][..., None]
    mean = cells.sums[books, picks] / number
    variance = (cells.squares[books, picks] / number - mean.square()).clamp(min=0.0)
    noise = torch.randn(mean.shape, generator=rng).to(mean)
    return mean + variance.sqrt() * noise


def average(books: Codebooks, cells: Cells, decay: float) -> Codebooks:
    """One step of the moving average, ``N = decay N + (1 - decay) n``, and so for the sums.

    ``keys = sums / N'`` with the smoothed count ``N' = (N + eps) / (sum N + M eps) * sum N``.

    Args:
        books: Before the step.
        cells: What the batch adds up to under ``books.keys``.
        decay: In ``[0, 1)``; ``0`` is a step of Lloyd's algorithm.
    """
    counts = decay * books.counts + (1.0 - decay) * cells.counts
    sums = decay * books.sums + (1.0 - decay) * cells.sums
    total = counts.sum(dim=1, keepdim=True)
    pairs = counts.shape[1]
    smoothed = (counts + SMOOTHING) / (total + pairs * SMOOTHING) * total
    keys = torch.where(smoothed[..., None] > 0, sums / smoothed[..., None], books.keys)
    return Codebooks(keys=keys, sums=sums, counts=counts)


def revive(books: Codebooks, candidates: Tensor, threshold: float) -> Codebooks:
    """Replace every key used less than the threshold, and its averages with it.

    ``key = candidate, N = threshold, sums = threshold * candidate``.

    Args:
        books: After a step.
        candidates: ``[B, M, q]``, one for every key.
        threshold: Smallest count of a live key; 0.1 of a uniform share in the paper's code.
    """
    dead = books.counts < threshold
    wide = dead[..., None]
    return Codebooks(
        keys=torch.where(wide, candidates, books.keys),
        sums=torch.where(wide, candidates * threshold, books.sums),
        counts=torch.where(dead, torch.full_like(books.counts, threshold), books.counts),
    )


def fit_codebooks(
    batches: Iterable[Tensor],
    *,
    pairs: int,
    decay: float,
    dead_share: float,
    start: KeyStart,
    rng: torch.Generator,
) -> Tensor:
    """Keys after one step of the moving average per batch, with the dead-code rule.

    Args:
        batches: Heads ``[B, n, q]``, of all epochs.
        pairs: ``M``.
        decay: See :func:`average`.
        dead_share: A key is dead below this share of ``n / M``; ``0`` revives none.
        start: See :func:`start_codebooks`.
        rng: Draws starts and replacements.

    Returns:
        ``[B, M, q]``.

    Raises:
        ValueError: If there is no batch.
    """
    books: Codebooks | None = None
    for heads in batches:
        if books is None:
            books = start_codebooks(heads, pairs, start, rng)
        books = average(books, assign(heads, books.keys), decay)
        threshold = dead_share * heads.shape[1] / pairs
        if bool((books.counts < threshold).any()):
            books = revive(books, draw_heads(heads, pairs, rng), threshold)
    if books is None:
        raise ValueError("keys cannot be fitted without features")
    return books.keys
