"""Real-valued masks on the weight matrices of any module, and the penalties on them.

A masked module computes with ``W * M``; ``W`` and ``M`` are both ordinary parameters.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

Init = Literal["ones", "xavier"]


class Mask(nn.Module):
    """Multiplies a weight by a mask; in evaluation, mask entries near zero count as zero.

    Args:
        weight: The weight to be masked.
        threshold: In evaluation, entries with ``|m| < threshold`` are zero.
        init: ``ones``, or ``xavier`` for Xavier-uniform.

    Shapes:
        - **input and output:** the shape of ``weight``.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206.
    """

    def __init__(self, weight: Tensor, *, threshold: float, init: Init = "ones") -> None:
        super().__init__()
        if threshold < 0:
            raise ValueError(f"threshold must be 0 or more, got {threshold}")
        if init not in ("ones", "xavier"):
            raise ValueError(f"init must be ones or xavier, got {init!r}")
        self.threshold = threshold
        self.mask = nn.Parameter(torch.ones_like(weight))
        if init == "xavier":
            nn.init.xavier_uniform_(self.mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return weight * (self.mask if self.training else cut(self.mask, self.threshold))


def attach_masks(module: nn.Module, *, threshold: float, init: Init = "ones") -> list[str]:
    """Mask every weight with two or more dimensions; biases and scales stay as they are.

    The module's code does not change: its weights become products (see
    :mod:`torch.nn.utils.parametrize`). Masks are thresholded while the module is in evaluation
    mode. Use :func:`weights` and :func:`masks` instead of ``state_dict`` to get at either part.

    Args:
        module: Changed in place.
        threshold: See :class:`Mask`.
        init: See :class:`Mask`.

    Returns:
        Names of the masked weights, as they were before.

    Raises:
        ValueError: If the module has masks already or no weight to mask.
    """
    if any(isinstance(part, Mask) for part in module.modules()):
        raise ValueError("the module has masks already")
    found = [
        (path, owner, name)
        for path, owner in module.named_modules()
        for name, weight in owner.named_parameters(recurse=False)
        if weight.dim() >= 2
    ]
    if not found:
        raise ValueError(f"{type(module).__name__} has no weight with two or more dimensions")
    for _, owner, name in found:
        mask = Mask(getattr(owner, name).detach(), threshold=threshold, init=init)
        mask.train(owner.training)
        parametrize.register_parametrization(owner, name, mask)
    return [f"{path}.{name}" if path else name for path, _, name in found]


def detach_masks(module: nn.Module, *, keep_product: bool = False) -> None:
    """Take the masks off again.

    PyTorch lets deep copies of a masked module share its class, so taking the masks off one of
    them breaks the others: build a second module instead of copying a masked one.

    Args:
        module: Changed in place; without masks nothing happens.
        keep_product: Whether the weights become ``W * M`` as evaluated in the module's present
            mode; otherwise they are ``W``.
    """
    for owner in list(module.modules()):
        if not parametrize.is_parametrized(owner):
            continue
        for name in list(owner.parametrizations):  # type: ignore[arg-type]
            if isinstance(owner.parametrizations[name][0], Mask):  # type: ignore[index]
                parametrize.remove_parametrizations(owner, name, leave_parametrized=keep_product)


def weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the masks, by the names they have without masks; live, not copies."""
    return {name: parameter for kind, name, parameter in _parts(module) if kind == "weight"}


def masks(module: nn.Module) -> dict[str, nn.Parameter]:
    """The masks by the names of the weights that they mask; live, not copies."""
    return {name: parameter for kind, name, parameter in _parts(module) if kind == "mask"}


def cut(mask: Tensor, threshold: float) -> Tensor:
    """The mask with every entry of ``|m| < threshold`` set to zero."""
    below = torch.nextafter(mask.new_tensor(threshold), mask.new_tensor(-1.0))
    return functional.hardshrink(mask, float(below)) if threshold > 0 else mask


def soft_threshold(mask: Tensor, step: float | Tensor) -> Tensor:
    """The proximal step of the L1 norm: entries move ``step`` towards zero and stop there.

    ``sign(m) * max(|m| - step, 0)``, the minimiser of ``step * |x|_1 + |x - m|^2 / 2``.

    Args:
        mask: Any shape.
        step: Learning rate times the coefficient of the L1 norm, 0 or more; a tensor of the mask's
            shape gives every entry its own.

    Raises:
        ValueError: If ``step`` is negative.

    Source:
        Parikh and Boyd, Proximal Algorithms, 2014, section 6.5.2.
    """
    if isinstance(step, float | int) and step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    return torch.sign(mask) * (mask.abs() - step).clamp(min=0.0)


def sparsity(masks: dict[str, Tensor] | dict[str, nn.Parameter], threshold: float = 0.0) -> float:
    """Share of mask entries that evaluation sets to zero, in ``[0, 1]``.

    Args:
        masks: The masks; 0 is returned without any entry.
        threshold: Entries with ``|m| < threshold`` count, and exact zeros do.
    """
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(cut(mask.detach(), threshold).count_nonzero()) for mask in masks.values())
    return 1.0 - kept / total if total else 0.0


def l1_penalty(masks: dict[str, Tensor] | dict[str, nn.Parameter]) -> Tensor:
    """``sum |m|`` over all masks, a scalar; its gradient is ``sign(m)``.

    Raises:
        ValueError: If there are no masks.
    """
    if not masks:
        raise ValueError("l1_penalty needs at least one mask")
    return torch.stack([mask.abs().sum() for mask in masks.values()]).sum()


def proximal_penalty(
    weights: dict[str, Tensor] | dict[str, nn.Parameter],
    anchor: dict[str, Tensor],
    *,
    squared: bool = True,
) -> Tensor:
    """How far the weights have moved from those received, a scalar.

    ``sum_t |w_t - a_t|_2^2`` (the paper), or ``sum_t |w_t - a_t|_2`` (its reference code). Either
    has a zero gradient at the anchor.

    Args:
        weights: The weights by name.
        anchor: The received weights, the same names and shapes.
        squared: Which of the two.

    Raises:
        ValueError: If the names differ.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206.
    """
    if weights.keys() != anchor.keys() or not weights:
        wrong = sorted(weights.keys() ^ anchor.keys())
        raise ValueError(f"weights and anchor must have the same names; only one has {wrong[:5]}")
    gaps = [weights[name] - anchor[name] for name in anchor]
    if squared:
        return torch.stack([gap.square().sum() for gap in gaps]).sum()
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()


def _parts(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Kind (``weight`` or ``mask``), plain name and parameter of everything in the module."""
    for name, parameter in module.named_parameters():
        before, found, after = name.rpartition("parametrizations.")
        if not found:
            yield "weight", name, parameter
            continue
        plain, _, part = after.partition(".")
        kind = "mask" if part.endswith(".mask") else "weight"
        yield kind, f"{before}{plain}", parameter
