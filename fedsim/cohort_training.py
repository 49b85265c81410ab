"""Local training of a block of clients at once: one autograd graph over stacked parameters."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedsim.arrays import Params
from fedsim.cohort_batches import IGNORED, Step
from fedsim.cohort_dense import dense_gradients
from fedsim.cohort_descent import Descent
from fedsim.cohort_dropout import ClientDropout
from fedsim.cohort_views import BlockDownload, BlockState, Stack, UnstackableError
from fedsim.data import Batch
from fedsim.model import mask_logits
from fedsim.state import ClientState
from fedsim.training import seeded
from fedsim.wire import Download

if TYPE_CHECKING:  # a client trains its blocks with this module
    from fedsim.client import Client

_PREFIX = "model."


class PaddedDrawError(Exception):
    """Dropout met a padded batch, for which the per-client loop would draw other numbers."""


class _Loss(nn.Module):
    """The client's loss as a module, so that the weights in it can be replaced for a call."""

    def __init__(self, client: "Client") -> None:
        super().__init__()
        self.model = client.model
        self._loss = client.loss

    def forward(self, batch: Batch, down: Download, state: ClientState) -> Tensor:
        return self._loss(self.model, batch, down, state)


class _Scores(nn.Module):
    """The scores that the plain loss is computed from, in the same form."""

    def __init__(self, client: "Client") -> None:
        super().__init__()
        self.model = client.model

    def forward(self, batch: Batch, down: Download, state: ClientState) -> Tensor:
        del down, state
        scores: Tensor = self.model(batch.inputs)
        return scores


class Noise:
    """Every client's generator of noise, as torch's own would be in the per-client loop.

    Args:
        seed: The seed of a client of the block, by its place.
        generators: Generators that have drawn before; else they are made when they are needed.
    """

    def __init__(
        self, seed: Callable[[int], int], generators: dict[int, torch.Generator] | None = None
    ) -> None:
        self._seed = seed
        self._generators = generators or {}

    def of(self, place: int) -> torch.Generator:
        """The generator of a client of the block."""
        if place not in self._generators:
            self._generators[place] = torch.Generator().manual_seed(self._seed(place))
        return self._generators[place]


class BlockTraining(Descent):
    """Parameters, optimiser and losses of the clients of a block.

    A loss is computed by ``vmap`` and differentiated outside of it.

    Args:
        client: Whose loss and optimiser; its model must be in training mode.
        weights: Named as the model's tensors: ``[k, ...]`` where they are the client's own, else
            as in the model.
        own: Names of the former.
        downs: What the clients received.
        states: What they remember.
        noise: Their generators.
    """

    def __init__(
        self,
        client: "Client",
        weights: Params,
        own: Sequence[str],
        downs: Sequence[Download],
        states: Sequence[ClientState],
        noise: "Noise",
    ) -> None:
        super().__init__(client, weights, own, downs[0], states[0])
        self._loss = _Loss(client)
        self._mapped_part = self._loss if client.overrides("loss") else _Scores(client)
        self._shared = {_PREFIX + n: t for n, t in self._unchanged.items()}
        self._down = downs[0]
        self._states = list(states)
        self._records = Stack([down.records for down in downs])
        nothing: dict[str, Params] = {}  # the same object, which is quickly seen
        self._groups = Stack([{n: state[n] for n in state} or nothing for state in states])
        self._places = list(range(len(downs)))  # of the active clients in the block
        self._noise = noise
        # Dropout is drawn client by client once it is met; where a forward pass changes running
        # statistics, it must not have to be repeated, so there it is awaited from the start.
        self._draws = bool(self._carried)
        named = set(self._params) == set(own) == set(weights)
        self._dense = dense_gradients(client) if named else None

    def take(self, steps: Sequence[Step]) -> Tensor:
        """One optimiser step of every active client; returns their losses ``[k]``."""
        if len(steps) == 1 and self._dense is not None and _is_plain(steps[0]):
            losses, gradients = self._dense(self._params, self._client.on_device(steps[0].batch))
            for name, param in self._params.items():
                param.grad = gradients[name]
        elif len(steps) == 1:
            self._optimizer.zero_grad(set_to_none=True)
            losses = self._losses(steps[0], list(self._params.values()), self._carried)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            losses = losses.detach()
        else:
            self._optimizer.zero_grad(set_to_none=True)
            losses = self._gather(steps)
        self.descend()
        return losses

    def keep(self, places: list[int]) -> list[Params]:
        """Go on with some of the active clients; returns the weights of the others, in order."""
        count = len(self._states)
        left = [place for place in range(count) if place not in set(places)]
        leaving = [{n: t[place].detach().clone() for n, t in self._own().items()} for place in left]
        rows = torch.tensor(places, dtype=torch.int64)
        for param in self._params.values():
            moments = self._optimizer.state.get(param, {})
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    moments[name] = value[rows]
            param.grad = None
            param.data = param.data[rows]
        self._carried = {n: t[rows] for n, t in self._carried.items()}
        self._records.keep(rows)
        self._groups.keep(rows)
        self._states = [self._states[place] for place in places]
        self._places = [self._places[place] for place in places]
        return leaving

    def weights(self) -> list[Params]:
        """The weights of the active clients, in order; views of the stacked tensors."""
        own = {name: tensor.detach() for name, tensor in self._own().items()}
        return [{n: t[place] for n, t in own.items()} for place in range(len(self._states))]

    def single(self, place: int, batch: Batch, down: Download, state: ClientState) -> float:
        """One active client's loss of a batch, without a trace in its weights."""
        weights = {_PREFIX + n: t[place].detach().clone() for n, t in self._own().items()}
        with torch.no_grad(), seeded(0):
            loss: Tensor = functional_call(
                self._loss,
                {**self._shared, **weights},
                (self._client.on_device(batch), down, state),
            )
        return float(loss)

    def _gather(self, steps: Sequence[Step]) -> Tensor:
        """Losses and gradients of steps that are computed apart."""
        params = list(self._params.values())
        losses = torch.empty(len(self._states), device=params[0].device)
        reached: list[list[bool]] = []
        for step in steps:
            rows = torch.tensor(step.places)
            part = [p.detach()[rows].requires_grad_() for p in params]
            carried = {n: t[rows] for n, t in self._carried.items()}
            values = self._losses(step, part, carried)
            gradients = torch.autograd.grad(values.sum(), part, allow_unused=True)
            losses[rows] = values.detach().float()
            for name, tensor in carried.items():
                self._carried[name][rows] = tensor
            for param, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    if param.grad is None:
                        param.grad = torch.zeros_like(param)
                    param.grad[rows] = gradient
            reached.append([gradient is not None for gradient in gradients])
        if any(flags != reached[0] for flags in reached[1:]):
            raise UnstackableError("the loss reaches other parameters in other clients")
        return losses

    def _losses(self, step: Step, params: list[Tensor], carried: Params) -> Tensor:
        """Every client's mean loss, ``[g]``."""
        try:
            return self._mapped(step, params, carried)
        except RuntimeError as error:
            if self._draws or "randomness error mode" not in str(error):
                raise
        self._draws = True
        return self._mapped(step, params, carried)

    def _mapped(self, step: Step, params: list[Tensor], carried: Params) -> Tensor:
        if self._draws and step.is_padded:
            raise PaddedDrawError
        whole = len(step.places) == len(self._states)
        rows = None if whole else torch.tensor(step.places)
        batch = self._client.on_device(step.batch)
        stacked = [batch.inputs, batch.targets] + ([] if batch.tasks is None else [batch.tasks])
        records, groups = (
            stack.tensors if rows is None else [t[rows] for t in stack.tensors]
            for stack in (self._records, self._groups)
        )
        names = [_PREFIX + name for name in (*self._params, *carried)]
        cuts = [len(names), len(stacked), len(records), len(groups)]

        def loss(*tensors: Tensor) -> Tensor:
            weights, examples, received, remembered = _cut(tensors, cuts)
            for weight in weights[: len(params)]:
                weight.requires_grad = True  # what a loss may ask; vmap's wrappers say no
            replaced = {**self._shared, **dict(zip(names, weights, strict=True))}
            down = BlockDownload(
                self._down.tick, self._records.records(received), self._down.config
            )
            state = BlockState(self._groups.records(remembered), self._states)
            one = Batch(*examples)
            with self._dropout(step) if self._draws else nullcontext():
                value: Tensor = functional_call(self._mapped_part, replaced, (one, down, state))
            return value

        mapped = vmap(loss, randomness="error")
        losses: Tensor = mapped(*params, *carried.values(), *stacked, *records, *groups)
        if self._mapped_part is not self._loss:
            return _cross_entropy(losses, batch, self._client.scenario.task_classes)
        if losses.dim() != 1:
            raise UnstackableError(f"the loss of a batch is no scalar: {tuple(losses.shape[1:])}")
        return losses

    def _dropout(self, step: Step) -> ClientDropout:
        def generators() -> list[torch.Generator]:
            return [self._noise.of(self._places[p]) for p in step.places]

        return ClientDropout(generators)


def _cross_entropy(scores: Tensor, batch: Batch, task_classes: Tensor | None) -> Tensor:
    """Every client's plain loss, ``[g]``, from the scores of its batch, ``[g, n, K]``.

    Inside of ``vmap`` torch takes this loss to pieces, and loads 70 MB of symbolic mathematics to
    do so.
    """
    if scores.dim() != 3:
        raise UnstackableError(f"the scores of an example are {tuple(scores.shape[2:])}")
    tasks = None if batch.tasks is None else batch.tasks.flatten()
    flat = mask_logits(scores.flatten(0, 1), tasks, task_classes)
    each = functional.cross_entropy(flat, batch.targets.flatten(), reduction="none")
    return each.view(batch.targets.shape).sum(1) / (batch.targets != IGNORED).sum(1)


def _cut(tensors: Sequence[Tensor], lengths: Sequence[int]) -> list[list[Tensor]]:
    """Consecutive parts of the given lengths."""
    parts, start = [], 0
    for length in lengths:
        parts.append(list(tensors[start : start + length]))
        start += length
    return parts


def _is_plain(step: Step) -> bool:
    """Whether the loss is a mean over all examples of every batch, and over all classes."""
    return step.batch.tasks is None and not step.is_padded
