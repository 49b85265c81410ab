"""The parameters of a block of clients, stacked, and the optimiser that steps all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedsim.arrays import Params
from fedsim.cohort_views import UnstackableError
from fedsim.state import ClientState
from fedsim.wire import Download

if TYPE_CHECKING:  # a client trains its blocks with this module
    from fedsim.client import Client


class Descent:
    """Every trainable tensor has one row per active client, ``[k, ...]``.

    So have the tensors that a forward pass changes (running statistics). The sum over clients of
    their mean losses has every client's own gradient in its row, and the optimisers that are let in
    work element by element, so that one step on the stacked tensors is every client's own step.

    Args:
        client: Whose optimiser; its model must be in training mode.
        weights: Named as the model's tensors: ``[k, ...]`` where they are the client's own, else
            as in the model.
        own: Names of the former.
        down: What one of the clients received.
        state: What the optimiser may go on from.
    """

    def __init__(
        self,
        client: "Client",
        weights: Params,
        own: Sequence[str],
        down: Download,
        state: ClientState,
    ) -> None:
        trainable = {name for name, p in client.model.named_parameters() if p.requires_grad}
        self._client = client
        self._params = {n: nn.Parameter(weights[n]) for n in own if n in trainable}
        self._carried = {n: weights[n] for n in own if n not in trainable}
        self._unchanged = {n: t for n, t in weights.items() if n not in own}
        self._versions = [t._version for t in self._unchanged.values()]
        self._optimizer: Optimizer = client._optimizer(list(self._params.values()), down, state)
        self._descends = is_plain_descent(self._optimizer)
        self._clip_norm = client.training.clip_norm

    def descend(self) -> None:
        """One step of every active client along the gradients that its parameters have."""
        if self._clip_norm is not None:
            _clip([p.grad for p in self._params.values() if p.grad is not None], self._clip_norm)
        if not self._descends:
            self._optimizer.step()
            return
        for group in self._optimizer.param_groups:  # without what torch does around it
            params = [p for p in group["params"] if p.grad is not None]
            with torch.no_grad():
                torch._foreach_add_(params, [p.grad for p in params], alpha=-group["lr"])

    def stacked(self) -> Params:
        """The weights of the active clients, one row each."""
        return {name: tensor.detach() for name, tensor in self._own().items()}

    def check(self) -> None:
        """Raise UnstackableError if training changed tensors that were taken for constant."""
        if [t._version for t in self._unchanged.values()] != self._versions:
            raise UnstackableError("a forward pass changes tensors other than running statistics")

    def _own(self) -> Params:
        return {**self._params, **self._carried}


def fuse(optimizer: Optimizer) -> None:
    """Let Adam pass over the memory once instead of ten times, unless told not to."""
    if isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            group["fused"] = group["fused"] is None or group["fused"]


def restore_moments(optimizer: Optimizer, states: Sequence[ClientState]) -> None:
    """Put everybody's moments, as the per-client loop keeps them, into the stacks' optimiser."""
    held = [state["optimizer"] for state in states]
    stacked: dict[int, Params] = {}
    for key, first in held[0].items():
        number, moment = key.split(".", 1)
        whole = first.clone() if first.dim() == 0 else torch.stack([part[key] for part in held])
        stacked.setdefault(int(number), {})[moment] = whole
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stacked})


def leave_moments(optimizer: Optimizer, states: Sequence[ClientState]) -> None:
    """Every client's row of the moments into its state."""
    moments = {  # not copied: nobody else has this optimiser
        f"{number}.{name}": value.detach()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    for place, state in enumerate(states):
        state["optimizer"] = {
            name: value if value.dim() == 0 else value[place] for name, value in moments.items()
        }


def is_plain_descent(optimizer: Optimizer) -> bool:
    """Whether a step subtracts the gradient times the rate and does nothing else."""
    return type(optimizer) is torch.optim.SGD and not any(
        group["momentum"] or group["weight_decay"] or group["maximize"]
        for group in optimizer.param_groups
    )


def _clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Scale every row of the gradients to a total norm of at most ``largest``.

    As ``torch.nn.utils.clip_grad_norm_`` does for one client.
    """
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients])
    factors = (largest / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
