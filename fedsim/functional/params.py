"""Averages of named tensors."""

from collections.abc import Iterable

import torch
from torch import Tensor

Params = dict[str, Tensor]


def weighted_mean(parts: Iterable[tuple[float, Params]]) -> Params:
    """Mean of named tensors, ``sum_i n_i x_i / sum_i n_i``, one part in memory at a time.

    >>> weighted_mean([(1, {"w": torch.tensor([0.0])}), (3, {"w": torch.tensor([4.0])})])
    {'w': tensor([3.])}

    Args:
        parts: Weights ``n_i``, 0 or more, with tensors of the same names and shapes.

    Returns:
        Tensors in the types of the first part; integers are truncated.

    Raises:
        ValueError: If the weights do not add up to more than 0 or the names differ.
    """
    total = 0.0
    sums: Params = {}
    types: dict[str, torch.dtype] = {}
    for weight, params in parts:
        if not sums:
            types = {name: tensor.dtype for name, tensor in params.items()}
            sums = {
                name: torch.zeros_like(tensor, dtype=_wide(tensor))
                for name, tensor in params.items()
            }
        if params.keys() != sums.keys():
            wrong = sorted(params.keys() ^ sums.keys())
            raise ValueError(f"all parts must have the same names; only some have {wrong[:5]}")
        for name, tensor in params.items():
            sums[name].add_(tensor, alpha=weight)
        total += weight
    if total <= 0.0:
        raise ValueError(f"the weights must add up to more than 0, got {total}")
    return {name: (tensor / total).to(types[name]) for name, tensor in sums.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to sum in."""
    return tensor.dtype if tensor.is_floating_point() else torch.float64
