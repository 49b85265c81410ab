"""Nodes of different graphs with neighbours in common, and what they learn from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Holdings:
    """Whom a client's nodes are linked to, under names that all clients share.

    Attributes:
        own: Name of every node of the client, int64 ``[m]``.
        rows: The nodes that have a link, as positions in ``own``, ``[L]``.
        neighbours: Name of what they are linked to, whoever holds it, ``[L]``.
    """

    own: Tensor
    rows: Tensor
    neighbours: Tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """Nodes of other clients that have neighbours in common with one client's.

    Attributes:
        rows: The client's node, ``[k]``, ascending.
        clients: Who holds the other, ``[k]``, as positions in the sequence of holdings.
        their_rows: The other node, as a position in its holder's ``own``, ``[k]``.
    """

    rows: Tensor
    clients: Tensor
    their_rows: Tensor


def matches(holdings: Sequence[Holdings], *, at_least: int, limit: int) -> list[Matches]:
    """For every client's nodes, the foreign nodes with which they share most neighbours.

    Nodes ``u`` of client ``i`` and ``v`` of client ``j`` match if ``|N(u) & N(v)| >= at_least`` and
    client ``i`` does not hold ``v`` itself. Of more than ``limit`` matches of ``u`` those with most
    common neighbours are taken; of equal ones, those of the first client.

    Args:
        holdings: One per client.
        at_least: Common neighbours that make a match, 1 or more.
        limit: Matches of a node, 0 or more.

    Returns:
        One per client.

    Raises:
        ValueError: If a number is out of range.
    """
    if at_least < 1 or limit < 0:
        raise ValueError(
            f"at_least must be 1 or more and limit 0 or more, got {at_least} and {limit}"
        )
    if not holdings:
        return []
    names = torch.unique(torch.cat([h.neighbours for h in holdings]))
    own = torch.cat([h.own for h in holdings])
    sizes = torch.tensor([len(h.own) for h in holdings])
    starts = sizes.cumsum(0) - sizes
    holder = torch.repeat_interleave(torch.arange(len(holdings)), sizes)
    links = [_links(h, names) for h in holdings]
    shifted = [
        part + torch.tensor([[start], [0]]) for part, start in zip(links, starts, strict=True)
    ]
    everybody = torch.cat(shifted, dim=1)
    by_name = everybody[:, everybody[1].argsort(stable=True)]
    found = []
    for number, part in enumerate(links):
        rows, others, counts = _common(part, by_name, len(own))
        foreign = (holder[others] != number) & ~torch.isin(own[others], holdings[number].own)
        kept = foreign & (counts >= at_least)
        rows, others = _most_alike(rows[kept], others[kept], counts[kept], limit)
        clients = holder[others]
        found.append(Matches(rows, clients, others - starts[clients]))
    return found


def attached(values: Tensor, embeddings: Tensor, rows: Tensor, sources: Tensor) -> Tensor:
    """Every node's mean over itself and the foreign nodes that are attached to it.

    ``out_u = (x_u + sum_v e_v) / (1 + k_u)`` over the ``k_u`` foreign nodes of ``u``; a node
    without any keeps its values.

    Args:
        values: One row per own node, ``[m, d]``.
        embeddings: One row per foreign node, ``[k, d]``.
        rows: Own end of every link, ``[L]``.
        sources: Foreign end of every link, ``[L]``.

    Returns:
        ``[m, d]``.
    """
    total = values.index_add(0, rows, embeddings[sources])
    number = torch.ones(len(values), device=values.device, dtype=values.dtype)
    number = number.index_add(0, rows, torch.ones_like(rows, dtype=values.dtype))
    return total / number[:, None]


def _links(holdings: Holdings, names: Tensor) -> Tensor:
    """Rows and what they are linked to, as positions in ``names``, every pair once, ``[2, L]``."""
    columns = torch.searchsorted(names, holdings.neighbours)
    pairs: Tensor = torch.unique(torch.stack([holdings.rows, columns]), dim=1)
    return pairs.contiguous()


def _common(part: Tensor, by_name: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a client's nodes and all nodes, and how many neighbours they have in common.

    Args:
        part: The client's links, ``[2, l]``.
        by_name: Everybody's links, sorted by what they lead to, ``[2, L]``.
        number: Nodes of everybody.
    """
    rows, columns = part
    starts = torch.searchsorted(by_name[1], columns)
    sizes = torch.searchsorted(by_name[1], columns, right=True) - starts
    ends = sizes.cumsum(0)
    # all links that lead where a link of the client leads, link by link
    places = torch.arange(int(sizes.sum())) + torch.repeat_interleave(starts - ends + sizes, sizes)
    pairs = torch.repeat_interleave(rows, sizes) * number + by_name[0, places]
    pairs, counts = torch.unique(pairs, return_counts=True)
    return pairs // number, pairs % number, counts


def _most_alike(rows: Tensor, others: Tensor, counts: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The ``limit`` pairs of every row with the highest counts."""
    order = counts.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, others = rows[order], others[order]
    sizes = torch.bincount(rows)
    kept = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows] < limit
    return rows[kept], others[kept]
