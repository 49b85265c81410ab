"""Checks every update before it can reach the global model."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from fedsim.arrays import Params
from fedsim.forms import Fault
from fedsim.wire import Upload

Policy = Literal["reject", "abort", "clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An update that was not aggregated.

    Attributes:
        round: When.
        client: Who; -1 if the sender is nobody's node.
        kind: Which check refused it; ``docs/reliability.md`` lists them.
        reason: Why, in words.
    """

    round: int
    client: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What an update must satisfy, and what happens if it does not.

    Attributes:
        policy: ``reject`` goes on without a bad update, ``abort`` ends the run at the first one,
            ``clip`` rejects too but scales an update that is merely too large down to ``max_norm``.
        max_norm: Largest Euclidean norm of an update, i.e. weights received minus weights sent and
            tensors named ``deltas``, over all floating-point values; None for no bound.
        max_bytes: Largest reply; larger ones are not decoded.
        max_examples: Largest weight that a client can claim.
        min_results: Clients that must give a usable result, or say that they have no data, in a
            round that asks any; with fewer the round is void and the run ends.
    """

    policy: Policy = "reject"
    max_norm: float | None = 1e6
    max_bytes: int = 1_000_000_000
    max_examples: float = 1e9
    min_results: int = 1

    def __post_init__(self) -> None:
        if self.policy not in ("reject", "abort", "clip"):
            raise ValueError(f"gate.policy must be reject, abort or clip, got {self.policy!r}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"gate.max_norm must be above 0, or null; got {self.max_norm}")
        if self.policy == "clip" and self.max_norm is None:
            raise ValueError("gate.policy=clip needs gate.max_norm, the norm to clip to")
        for name in ("max_bytes", "max_examples"):
            if not getattr(self, name) > 0:
                raise ValueError(f"gate.{name} must be above 0, got {getattr(self, name)}")
        if isinstance(self.min_results, bool) or self.min_results < 0:
            raise ValueError(f"gate.min_results must be 0 or more, got {self.min_results}")


def weight_fault(upload: Upload, max_examples: float) -> Fault | None:
    """Why an upload's weight must not be used, or None."""
    weight = upload.num_examples
    if not math.isfinite(weight) or not 0 < weight <= max_examples:
        text = f"expected a number of examples above 0 and at most {max_examples:g}, got {weight}"
        return Fault("weight", text)
    return None


def loss_fault(upload: Upload) -> Fault | None:
    """Why a strategy that reads the clients' losses must not read this one, or None."""
    loss = upload.metrics.get("loss", 0.0)
    if isinstance(loss, list) or not math.isfinite(loss):
        return Fault("metrics", f"expected a finite loss, got {loss}")
    return None


def evaluation_fault(upload: Upload) -> Fault | None:
    """Why the tests of a client must not be recorded, or None."""
    lists = {n: v for n, v in upload.metrics.items() if isinstance(v, list)}
    if not math.isfinite(upload.num_examples) or upload.num_examples < 0:
        return Fault("evaluation", f"tests on {upload.num_examples} examples")
    if "accuracy" in upload.metrics and not {"accuracy", "loss", "examples"} <= lists.keys():
        return Fault("evaluation", "expected lists accuracy, loss and examples over experiences")
    if len({len(values) for values in lists.values()}) > 1:
        return Fault("evaluation", "the lists over experiences differ in length")
    if not all(math.isfinite(n) and n >= 0 for n in lists.get("examples", [])):
        return Fault("evaluation", "numbers of examples must be finite and at least 0")
    return None


def squared_norm(params: Params) -> float:
    """Sum of the squares of all floating-point values; infinite where squares overflow."""
    return sum(torch.dot(f, f).item() for f in (t.reshape(-1) for t in floats(params).values()))


def is_finite(params: Params) -> bool:
    """Whether no floating-point value is NaN or infinite, however large the values are."""
    return all(bool(torch.isfinite(t).all()) for t in floats(params).values())


def is_idle(upload: Upload) -> bool:
    """Whether the client says that it had no data to train on."""
    return upload.num_examples == 0 and not upload.records


def floats(params: Params) -> Params:
    """The floating-point tensors."""
    return {n: t for n, t in params.items() if t.is_floating_point()}
