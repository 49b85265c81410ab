"""Training without torch's compiler in memory, as long as nobody compiles.

PyTorch's optimisers load ``torch._dynamo`` when the first of them is made, a second of CPU time and
150 MB, though all that they ask of it is not to be compiled. Nothing in fedsim is compiled. A
client that does call ``torch.compile`` loads it then, and from then on torch does what it always
does.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_EXEMPT = "__dynamo_disable"  # where torch notes a function's form that is never compiled
_MARKING = "_use_grad"  # torch's wrapper around a step, which leaves marks for the compiler


def keep_compiler_out() -> None:
    """See to it that optimisers do not load the compiler.

    Nothing changes where it is loaded already, or where torch keeps these notes elsewhere.
    """
    if _COMPILER in sys.modules:
        return
    exempt: list[Callable[..., Any]] = [
        Optimizer.add_param_group,
        Optimizer.zero_grad,
        Optimizer.state_dict,
        Optimizer.load_state_dict,
    ]
    for function in exempt:
        inner = getattr(function, "__wrapped__", None)
        if inner is not None and not hasattr(inner, _EXEMPT):
            setattr(inner, _EXEMPT, _while_absent(inner))
    for name in torch.optim.__all__:
        kind = getattr(torch.optim, name)
        step = vars(kind).get("step") if isinstance(kind, type) else None
        if step is not None and step.__code__.co_name == _MARKING:
            kind.step = _uncompiled(step)


def _while_absent(inner: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself until the compiler is there, then what torch would have made of it."""

    @functools.wraps(inner)
    def call(*args: Any, **options: Any) -> Any:
        if _COMPILER in sys.modules:
            disabled = sys.modules[_COMPILER].disable(inner, wrapping=False)
            setattr(inner, _EXEMPT, disabled)
            return disabled(*args, **options)
        return inner(*args, **options)

    return call


def _uncompiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of an optimiser without the marks that it leaves for the compiler."""
    inner = step.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(step)
    def call(self: Optimizer, *args: Any, **options: Any) -> Any:
        if _COMPILER in sys.modules:
            return step(self, *args, **options)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return inner(self, *args, **options)

    return call
