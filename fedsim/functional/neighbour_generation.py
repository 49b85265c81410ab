"""Neighbours made up for nodes that lost theirs: how far they are from real ones, and mending."""

import torch
from torch import Tensor


def nearest(generated: Tensor, candidates: Tensor, allowed: Tensor | None = None) -> Tensor:
    """For every generated vector the nearest candidate, ``argmin_u ||g_vp - x_u||^2``.

    Args:
        generated: ``[s, p, D]``.
        candidates: ``[n, D]``, at least one.
        allowed: Which candidates count for a node, bool ``[s, n]``; None allows all. A node
            without any gets an arbitrary one.

    Returns:
        Positions in ``candidates``, ``[s, p]``.
    """
    with torch.no_grad():  # ||g||^2 is the same for all candidates
        distances = candidates.square().sum(dim=1) - 2.0 * generated @ candidates.t()
        if allowed is not None:
            distances = distances.masked_fill(~allowed[:, None, :], torch.inf)
        return distances.argmin(dim=2)


def reconstruction(
    generated: Tensor, counts: Tensor, candidates: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """How far generated neighbours are from the nearest real ones.

    ``1/s * sum_v sum_{p <= n_v} min_u ||g_vp - x_u||^2``, over the candidates that count for ``v``;
    a node without any adds nothing.

    Args:
        generated: Features of ``p`` neighbours of every node, ``[s, p, D]``.
        counts: How many of them count, ``n_v``, int64 ``[s]``; more than ``p`` is ``p``.
        candidates: Features of real nodes, ``[n, D]``.
        allowed: Which candidates count for a node, bool ``[s, n]``; None allows all.

    Returns:
        A scalar; its gradient with respect to ``g_vp`` is ``2/s * (g_vp - x_u)``.

    Source:
        Zhang et al., Subgraph Federated Learning with Missing Neighbor Generation, NeurIPS 2021,
        arXiv:2106.13430: the feature term of its losses, for own and for other clients' nodes.
    """
    if len(candidates) == 0 or generated.numel() == 0:
        return generated.sum() * 0.0
    positions = nearest(generated, candidates, allowed)
    counted = torch.arange(generated.shape[1], device=counts.device) < counts[:, None]
    if allowed is not None:
        counted = counted & allowed.any(dim=1)[:, None]
    gaps = generated[counted] - candidates[positions[counted]]
    return gaps.square().sum() / len(generated)


def chosen(generated: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The generated neighbours that count: the first ``n_v`` of every node.

    Args:
        generated: ``[m, p, D]``.
        counts: ``n_v``, ``[m]``.

    Returns:
        Their features ``[g, D]`` and the nodes that they belong to, ``[g]``.
    """
    counted = torch.arange(generated.shape[1], device=counts.device) < counts[:, None]
    return generated[counted], counted.nonzero()[:, 0]


def mended(x: Tensor, links: Tensor, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A graph with further nodes, each linked to one of its nodes in both directions.

    Args:
        x: Features, ``[m, D]``.
        links: ``[2, L]``.
        features: Features of the further nodes, ``[g, D]``; they come last.
        rows: The node that each is linked to, ``[g]``.

    Returns:
        Features ``[m + g, D]`` and links ``[2, L + 2g]``.
    """
    new = torch.arange(len(x), len(x) + len(features), device=links.device)
    further = torch.stack([torch.cat([rows, new]), torch.cat([new, rows])])
    return torch.cat([x, features]), torch.cat([links, further], dim=1)
