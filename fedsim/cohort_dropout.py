"""Dropout under ``vmap``, with every client's masks from its own generator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from fedsim.cohort_views import UnstackableError

Generators = Callable[[], Sequence[torch.Generator]]


class _Dropout(Function):
    """Dropout of stacked values; it exists under ``vmap`` only, and is differentiated below it."""

    @staticmethod
    def forward(values: Tensor, share: float, generators: Generators) -> Tensor:
        """Without ``vmap`` there are no clients to draw for."""
        raise UnstackableError(
            f"dropout ({share}) of values {tuple(values.shape)} that all of"
            f" {len(generators())} clients share"
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: see :meth:`vmap`."""

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[Any, ...], values: Tensor, share: float, generators: Generators
    ) -> tuple[Tensor, int]:
        """Masks in the shapes of the per-client loop, one after the other."""
        stacked = values.movedim(in_dims[0], 0)
        masks = torch.stack(
            [
                torch.empty(stacked.shape[1:], dtype=values.dtype).bernoulli_(share, generator=g)
                for g in generators()
            ]
        )
        return stacked * masks.div_(share), 0


class ClientDropout(TorchFunctionMode):
    """Draws dropout's masks as the per-client loop does: client by client, in its shapes.

    Args:
        generators: Gives every client's generator, in the state that torch's own would be in.
    """

    def __init__(self, generators: Generators) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run dropout here and everything else as it is."""
        del types
        if func is F.dropout:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        if inplace or input.device.type != "cpu":
            raise UnstackableError("dropout in place or on a GPU draws its own numbers")
        dropped: Tensor = _Dropout.apply(input, 1.0 - p, self._generators)
        return dropped
