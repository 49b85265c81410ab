"""The only training loop, what a client does in it, and learning-rate schedules over rounds."""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedsim.arrays import Params
from fedsim.data import Batch

Loss = Callable[[Batch], Tensor]
T = TypeVar("T")
Schedule = Callable[[float], float]  # share of the run that is over, in [0, 1) -> factor


def constant(progress: float) -> float:
    """The same rate all the time."""
    del progress
    return 1.0


def cosine(progress: float, final: float = 0.0) -> float:
    """Half a cosine from 1 down to ``final``.

    Source:
        Loshchilov and Hutter, SGDR, ICLR 2017, arXiv:1608.03983 (without restarts).
    """
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def steps(
    progress: float, milestones: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """Multiplies by ``factor`` at each milestone (shares of the run).

    Raises:
        ValueError: If a milestone is no share of the run, and so would never come.
    """
    if not all(0 <= m < 1 for m in milestones):
        raise ValueError(f"schedule.milestones must lie in [0, 1), got {list(milestones)}")
    return float(factor ** sum(progress >= m for m in milestones))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """How a client trains in one round.

    Attributes:
        optimizer: Builds the optimiser from the parameters.
        epochs: Passes over the client's data.
        batch_size: Examples a step; ``0`` means all of them.
        schedule: Factor of the learning rate, given the share of the rounds that is over.
        clip_norm: Largest total gradient norm, or None.
        keep_optimizer: Whether the optimiser's moments stay with the client between rounds
            (they describe the client's own model, not the one it receives); else they start anew.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    epochs: int = 1
    batch_size: int = 32
    schedule: Schedule = constant
    clip_norm: float | None = None
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        for name in ("optimizer", "schedule"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        if self.epochs < 0:
            raise ValueError(f"training.epochs must be 0 or more, got {self.epochs}")
        if self.batch_size < 0:
            raise ValueError(
                f"training.batch_size must be 1 or more, or 0 for a full batch; got"
                f" {self.batch_size}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"training.clip_norm must be positive or null, got {self.clip_norm}")
        for progress in (0.0, 0.5, 0.999):  # where a schedule refuses its options, too
            if not self.schedule(progress) >= 0:
                raise ValueError(
                    f"schedule must multiply the learning rate by 0 or more, got"
                    f" {self.schedule(progress)} when {progress} of the run is over"
                )


def _plain(call: Callable[..., T]) -> Callable[..., T]:
    """The call itself, where Hydra's policy would be asked again and again.

    Hydra checks what a configuration names when it makes a partial of it, and asks its policy at
    every call once more: 0.4 ms, as long as a step of a small model.
    """
    if isinstance(call, functools.partial) and type(call) is not functools.partial:
        return functools.partial(call.func, *call.args, **call.keywords)
    return call


def fit(
    loss: Loss,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    parameters: list[nn.Parameter],
    clip_norm: float | None = None,
) -> float:
    """One optimiser step per batch; returns the mean loss per example, NaN without any batch.

    Args:
        loss: Mean loss of a batch, a scalar.
        batches: The batches of all epochs, in order.
        optimizer: Steps the parameters.
        parameters: Those whose gradient norm is clipped.
        clip_norm: Largest total gradient norm, or None.
    """
    losses: list[Tensor] = []
    sizes: list[int] = []
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    for batch in batches:
        for parameter in stepped:  # what zero_grad does, without its profiling
            parameter.grad = None
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            clip_gradients(parameters, clip_norm)
        optimizer.step()
        losses.append(value.detach())  # still on the device: the loop waits for nothing
        sizes.append(len(batch.targets))
    if not losses:
        return math.nan
    values: list[float] = torch.stack(losses).tolist()
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> None:
    """Scale all gradients so that their total norm is at most ``clip_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, which takes sparse gradients in the newest releases only.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # else parts of one row count one by one
            values.append(parameter.grad._values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    if not values:
        return
    factor = torch.clamp(clip_norm / (nn.utils.get_total_norm(values) + 1e-6), max=1.0)
    torch._foreach_mul_(values, factor)


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Torch's own generators, which dropout reads, start from ``seed``; the CPU's is put back.

    ``torch.manual_seed`` would do, but on the CPU it costs a millisecond: it notes the call stack
    for GPUs that are not in use.
    """
    cpu = torch.default_generator
    state = cpu.get_state()
    cpu.manual_seed(seed)
    if device != "cpu":
        torch.manual_seed(seed)
    try:
        yield
    finally:
        cpu.set_state(state)


class SpareOptimizer:
    """An optimiser that serves one client after the other, as good as new for each.

    Making one takes longer than a step of a small model. All that torch's own optimisers remember
    lies in their ``state``, except for LBFGS; others are not reused.

    Args:
        training: Builds the optimiser.
    """

    def __init__(self, training: LocalTraining) -> None:
        self._training = training
        self._kept: tuple[Optimizer, list[float]] | None = None

    def renewed(self, parameters: list[nn.Parameter], rate_factor: float) -> Optimizer | None:
        """An optimiser of these parameters without any memory; None if one must be made.

        Args:
            parameters: What it steps.
            rate_factor: What the learning rates are multiplied by.
        """
        if self._kept is None:
            optimizer = self._training.optimizer(parameters)
            self._kept = optimizer, [group["lr"] for group in optimizer.param_groups]
        optimizer, rates = self._kept
        held = optimizer.param_groups[0]["params"]
        known = type(optimizer).__module__.startswith("torch.optim.")
        if not known or isinstance(optimizer, torch.optim.LBFGS):
            return None
        if len(held) != len(parameters) or any(map(operator.is_not, held, parameters)):
            return None
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor
        return optimizer


def optimizer_params(optimizer: Optimizer) -> Params:
    """The optimiser's moments as tensors, named ``<parameter number>.<moment>``."""
    return {
        f"{number}.{name}": value.detach().clone()
        for number, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, params: Params) -> None:
    """Put moments taken by :func:`optimizer_params` into a fresh optimiser."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in params.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
