"""Checks every update before it can reach the global model."""

import math
from dataclasses import dataclass

import torch

from fedsim.arrays import Params
from fedsim.wire import Upload


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
    floats = [t.reshape(-1) for t in params.values() if t.is_floating_point()]
    if math.isfinite(sum(torch.dot(t, t).item() for t in floats)):
        return True
    # the squares of large but finite values can overflow, so look again before saying no
    return all(bool(torch.isfinite(t).all()) for t in floats)


def fault(upload: Upload, expected: Params) -> str | None:
    """Why an upload must not be aggregated, or None if it may.

    It is refused if its weight is not a finite number of examples >= 0, if a record named
    ``arrays`` has other names or shapes than the global model, or if any value is NaN or infinite.

    Args:
        upload: What the client sent.
        expected: The global model.
    """
    if not math.isfinite(upload.num_examples) or upload.num_examples < 0:
        return f"expected a finite number of examples of at least 0, got {upload.num_examples}"
    for name, params in upload.records.items():
        if name == "arrays" and (reason := _mismatch(params, expected)):
            return reason
        if not is_finite(params):
            return f"record {name!r} holds NaN or infinity"
    return None


def is_idle(upload: Upload) -> bool:
    """Whether the client says that it had no data to train on."""
    return upload.num_examples == 0 and not upload.records


def _mismatch(params: Params, expected: Params) -> str | None:
    if params.keys() != expected.keys():
        wrong = sorted(params.keys() ^ expected.keys())
        return f"expected the model's {len(expected)} tensors, differing in {', '.join(wrong[:3])}"
    for name, tensor in params.items():
        if tensor.shape != expected[name].shape:
            want, got = tuple(expected[name].shape), tuple(tensor.shape)
            return f"{name!r}: expected shape {want}, got {got}"
    return None
