"""Tensors sent as the entries that matter: one bit an entry and the values of the kept ones."""

import torch
from torch import Tensor

_BITS = 8


def pack(tensor: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept entries of a tensor and where they were.

    >>> bits, values = pack(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True]))
    >>> bits.tolist(), values.tolist()
    ([5], [1.0, 3.0])

    Args:
        tensor: Any shape.
        kept: Bool, of the same shape.

    Returns:
        One bit an entry in row-major order, lowest bit first, uint8 ``[ceil(n / 8)]``; and the kept
        values ``[m]``.

    Raises:
        ValueError: If the shapes differ.
    """
    if tensor.shape != kept.shape:
        raise ValueError(f"expected equal shapes, got {tuple(tensor.shape)}, {tuple(kept.shape)}")
    flat = kept.reshape(-1)
    padded = torch.zeros(-(-flat.numel() // _BITS) * _BITS, dtype=torch.uint8)
    padded[: flat.numel()] = flat
    powers = 2 ** torch.arange(_BITS, dtype=torch.uint8)
    bits = (padded.view(-1, _BITS) * powers).sum(dim=1, dtype=torch.uint8)
    return bits, tensor[kept]


def packed_size(tensor: Tensor) -> int:
    """Bytes that :func:`pack` needs for the bits of a tensor."""
    return -(-tensor.numel() // _BITS)


def kept_entries(bits: Tensor, base: Tensor) -> int:
    """How many entries of a tensor the bits keep; -1 if they are not the bits of its size."""
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (packed_size(base),):
        return -1
    return int(_spread(bits, base).sum())


def unpack(bits: Tensor, values: Tensor, base: Tensor) -> Tensor:
    """A copy of ``base`` with the packed entries written into it.

    Args:
        bits: See :func:`pack`.
        values: See :func:`pack`.
        base: What the entries that were not kept are.

    Raises:
        ValueError: If the bits are not those of a tensor of this size with as many values.
    """
    if len(bits) != packed_size(base):
        raise ValueError(f"expected bits for {base.numel()} entries, got {len(bits)} bytes")
    kept = _spread(bits, base).view(base.shape)
    if int(kept.sum()) != len(values):
        raise ValueError(f"expected {int(kept.sum())} values, got {len(values)}")
    out = base.clone()
    out[kept] = values
    return out


def _spread(bits: Tensor, base: Tensor) -> Tensor:
    """One bool an entry, ``[n]``."""
    shifts = torch.arange(_BITS, dtype=torch.uint8)
    return ((bits.unsqueeze(1) >> shifts) & 1).reshape(-1)[: base.numel()].bool()
