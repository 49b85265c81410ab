"""Checks every update before it can reach the global model."""

import math
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fedsim.arrays import Params, to_params
from fedsim.wire import NUM_EXAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An update that was not aggregated.

    Attributes:
        round: When.
        client: Who.
        reason: Why, in words.
    """

    round: int
    client: int
    reason: str


def is_finite(params: Params) -> bool:
    """Whether no floating-point value is NaN or infinite."""
    floats = [t for t in params.values() if t.is_floating_point()]
    if not floats:
        return True
    norms = torch.stack([n.double() for n in torch._foreach_norm(floats)])
    if bool(torch.isfinite(norms).all()):
        return True
    # the norm of large but finite values can overflow, so look again before saying no
    return all(bool(torch.isfinite(t).all()) for t in floats)


def fault(reply: Message, expected: ArrayRecord) -> str | None:
    """Why a training reply must not be aggregated, or None if it may.

    A reply is refused if its weight is not a finite number of examples >= 0, if a record named
    ``arrays`` has other names or shapes than the global model, or if any value is NaN or infinite.

    Args:
        reply: A reply with content.
        expected: The global model.
    """
    weight = _weight(reply)
    if weight is None or not math.isfinite(weight) or weight < 0:
        return f"expected a finite number {NUM_EXAMPLES!r} of at least 0, got {weight}"
    for name, record in reply.content.items():
        if not isinstance(record, ArrayRecord):
            continue
        if name == "arrays" and (reason := _mismatch(record, expected)):
            return reason
        if not is_finite(to_params(record)):
            return f"record {name!r} holds NaN or infinity"
    return None


def is_idle(reply: Message) -> bool:
    """Whether the client says that it had no data to train on."""
    return _weight(reply) == 0 and not reply.content.array_records


def _weight(reply: Message) -> float | None:
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            value = record.get(NUM_EXAMPLES)
            return float(value) if isinstance(value, int | float) else None
    return None


def _mismatch(record: ArrayRecord, expected: ArrayRecord) -> str | None:
    if record.keys() != expected.keys():
        wrong = sorted(record.keys() ^ expected.keys())
        return f"expected the model's {len(expected)} tensors, differing in {', '.join(wrong[:3])}"
    for name, array in record.items():
        if tuple(array.shape) != tuple(expected[name].shape):
            return f"{name!r}: expected shape {expected[name].shape}, got {tuple(array.shape)}"
    return None
