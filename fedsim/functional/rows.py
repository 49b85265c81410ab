"""Sparse updates of a table: which rows a client changed, and how several clients' are merged."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Merge = Literal["sum", "count_weighted", "fedavg"]
MERGES = ("sum", "count_weighted", "fedavg")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowUpdate:
    """What one client did to a table.

    Attributes:
        indices: Rows it touched, without repeats, int64 ``[m]``.
        deltas: What it added to them, ``[m, v]``.
        counts: How often it fetched each, ``[m]``.
        num_examples: Examples it trained on.
    """

    indices: Tensor
    deltas: Tensor
    counts: Tensor
    num_examples: float


def merge_rows(table: Tensor, updates: Iterable[RowUpdate], merge: Merge) -> Tensor:
    """The table after the clients' updates; rows that nobody touched keep their bits.

    For row ``r`` and the clients ``T`` that touched it: ``sum`` adds ``sum_T delta``;
    ``count_weighted`` adds ``sum_T count delta / sum_T count``, so a row of one client only passes
    unchanged; ``fedavg`` adds ``sum_T n_c delta / n`` over the examples ``n`` of all clients, as
    averaging the whole tables would.

    Args:
        table: ``[R, v]``; not changed.
        updates: In client order; read once.
        merge: Which of the three.

    Raises:
        ValueError: If ``merge`` is none of the three or an update does not fit the table.
    """
    if merge not in MERGES:
        raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
    total = torch.zeros_like(table)
    weight = torch.zeros(len(table), 1, dtype=table.dtype)
    touched = torch.zeros(len(table), dtype=torch.bool)
    examples = 0.0
    for update in updates:
        _check(update, table)
        if merge == "sum":
            share = torch.ones(len(update.indices), 1)
        elif merge == "fedavg":
            share = torch.full((len(update.indices), 1), float(update.num_examples))
        else:
            share = update.counts[:, None].to(table.dtype)
        total.index_add_(0, update.indices, update.deltas * share)
        weight.index_add_(0, update.indices, share)
        touched[update.indices] = True
        examples += update.num_examples
    if merge == "sum":
        weight.fill_(1.0)
    elif merge == "fedavg":
        weight.fill_(examples)
    rows = touched.nonzero().flatten()
    merged = table.clone()
    merged[rows] += total[rows] / weight[rows].clamp(min=torch.finfo(table.dtype).tiny)
    return merged


def overlay(base: Tensor, indices: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Some rows of the table ``base`` after ``base[indices] = values``, without making that table.

    Args:
        base: ``[R, v]``.
        indices: Ascending, ``[m]``.
        values: ``[m, v]``.
        rows: Rows wanted, ``[w]``.

    Returns:
        ``[w, v]``.
    """
    wanted = base[rows].clone()
    if len(indices):
        places = torch.searchsorted(indices, rows).clamp(max=len(indices) - 1)
        hit = indices[places] == rows
        wanted[hit] = values[places[hit]]
    return wanted


def _check(update: RowUpdate, table: Tensor) -> None:
    shapes = (len(update.indices), table.shape[1]), (len(update.indices),)
    if tuple(update.deltas.shape) != shapes[0] or tuple(update.counts.shape) != shapes[1]:
        raise ValueError(
            f"an update of {len(update.indices)} rows needs deltas {shapes[0]} and counts"
            f" {shapes[1]}, got {tuple(update.deltas.shape)} and {tuple(update.counts.shape)}"
        )
    if len(update.indices) and not 0 <= int(update.indices.min()) <= int(
        update.indices.max()
    ) < len(table):
        raise ValueError(f"row numbers must lie in [0, {len(table)})")
