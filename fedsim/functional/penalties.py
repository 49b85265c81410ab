"""Penalties that hold parameters near an anchor, and the curvature that weighs them."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def proximal(params: Iterable[Tensor], anchor: Iterable[Tensor]) -> Tensor:
    """Half the squared distance between two sets of tensors.

    ``1/2 * sum_i ||p_i - a_i||^2``

    Args:
        params: Tensors that carry gradients, of any shapes.
        anchor: Tensors of the same shapes, in the same order.

    Returns:
        A scalar; its gradient with respect to ``p_i`` is ``p_i - a_i``.

    Raises:
        ValueError: If the numbers of tensors or their shapes differ.

    Source:
        Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv:1812.06127
        (there multiplied by ``mu``).
    """
    terms = [(p - a).square().sum() for p, a in _pairs(params, anchor)]
    return 0.5 * torch.stack(terms).sum() if terms else torch.zeros(())


def quadratic(
    params: Iterable[Tensor], anchor: Iterable[Tensor], importance: Iterable[Tensor]
) -> Tensor:
    """Half the squared distance between two sets of tensors, weighed per entry.

    ``1/2 * sum_i sum_j F_ij * (p_ij - a_ij)^2``

    Args:
        params: Tensors that carry gradients, of any shapes.
        anchor: Tensors of the same shapes, in the same order.
        importance: Non-negative weights ``F`` of the same shapes, in the same order.

    Returns:
        A scalar; its gradient with respect to ``p_i`` is ``F_i * (p_i - a_i)``.

    Raises:
        ValueError: If the numbers of tensors or their shapes differ.

    Source:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017,
        arXiv:1612.00796, equation 3 (there multiplied by ``lambda``).
    """
    weights = list(importance)
    pairs = list(_pairs(params, anchor))
    terms = [
        (f * (p - a).square()).sum()
        for (p, a), (_, f) in zip(pairs, _pairs([p for p, _ in pairs], weights), strict=True)
    ]
    return 0.5 * torch.stack(terms).sum() if terms else torch.zeros(())


def squared_gradients(
    loss: Callable[..., Tensor], params: Mapping[str, Tensor], *examples: Tensor, chunk: int = 32
) -> Weights:
    """Sum over examples of the squared gradient of each example's loss.

    ``sum_n (d loss(params, x_n, ...) / d params)^2``; with the negative log-likelihood as loss and
    divided by the number of examples this is the diagonal of the empirical Fisher information.

    Args:
        loss: Maps the parameters and one entry of every tensor in ``examples`` to a scalar.
        params: Named tensors.
        examples: Tensors whose first dimension counts examples, ``[n, ...]``.
        chunk: Examples whose gradients are held in memory at once.

    Returns:
        Named tensors of the parameters' shapes.

    Raises:
        ValueError: If ``chunk`` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    held = {name: p.detach() for name, p in params.items()}
    axes = (None, *[0] * len(examples))
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=axes, randomness="different")
    total = {name: torch.zeros_like(p) for name, p in held.items()}
    for begin in range(0, len(examples[0]), chunk):
        part = gradients(held, *(e[begin : begin + chunk] for e in examples))
        for name, values in part.items():
            total[name] += values.square().sum(dim=0)
    return total


def _pairs(left: Iterable[Tensor], right: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors side by side, of equal number and shapes."""
    a, b = list(left), list(right)
    if len(a) != len(b):
        raise ValueError(f"expected as many tensors on both sides, got {len(a)} and {len(b)}")
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise ValueError(
                f"tensor {number}: expected equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
    return list(zip(a, b, strict=True))
