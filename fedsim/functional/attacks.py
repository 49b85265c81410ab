"""What faults and attacks make of tensors: pure functions of named groups of them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Params = dict[str, Tensor]
Records = dict[str, Params]
HUGE = 1e30


def reversed_update(records: Records, received: Mapping[str, Params], scale: float) -> Records:
    """Weights ``received - scale * (trained - received)``; other floats change their sign.

    Args:
        records: What a client would send.
        received: What it was sent.
        scale: How much larger the reversed update is.
    """

    def turned(sent: Params, name: str, tensor: Tensor) -> Tensor:
        start = sent.get(name)
        if not tensor.is_floating_point():
            return tensor
        if start is None or start.shape != tensor.shape:
            return -scale * tensor
        return start - scale * (tensor - start)

    return {
        record: {n: turned(received.get(record, {}), n, t) for n, t in params.items()}
        for record, params in records.items()
    }


def with_noise(records: Records, scale: float, rng: torch.Generator) -> Records:
    """Gaussian noise of standard deviation ``scale`` on all floating-point values."""
    return on_floats(records, lambda t: t + scale * torch.randn(t.shape, generator=rng).to(t.dtype))


def on_floats(records: Records, change: Callable[[Tensor], Tensor]) -> Records:
    """The records with all floating-point tensors changed."""
    return {
        record: {n: change(t) if t.is_floating_point() else t for n, t in params.items()}
        for record, params in records.items()
    }


def _with_value(value: float) -> Callable[[Records], Records]:
    """Puts a value into the first place of every floating-point tensor."""

    def spoiled(tensor: Tensor) -> Tensor:
        flat = tensor.clone().reshape(-1)
        flat[:1] = value
        return flat.view(tensor.shape)

    return lambda records: on_floats(records, spoiled)


def _other_dtype(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor.double()


def _renamed(params: Params) -> Params:
    return {(n if i else f"{n}?"): t for i, (n, t) in enumerate(params.items())}


SPOIL: dict[str | None, Callable[[Records], Records]] = {
    "nan": _with_value(float("nan")),
    "inf": _with_value(float("inf")),
    "huge": lambda records: on_floats(records, lambda t: torch.full_like(t, HUGE)),
    "wrong_shape": lambda records: {
        r: {n: t.unsqueeze(0) for n, t in params.items()} for r, params in records.items()
    },
    "wrong_dtype": lambda records: on_floats(records, _other_dtype),
    "wrong_keys": lambda records: {r: _renamed(params) for r, params in records.items()},
}
