"""Elastic weight consolidation on the client: important weights stay near where they were."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.arrays import Params
from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.functional.penalties import quadratic, squared_gradients
from fedsim.model import Model, mask_logits
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download

EXPERIENCES = "ewc-experiences"  # counter: experiences consolidated so far


class EWC(Client):
    """Adds ``lambda/2 * sum_k sum_j F_kj (w_j - w*_kj)^2`` over past experiences ``k`` to the loss.

    When an experience is over, the client takes the model it is given then (the download of its
    first round in a later experience, so the federation's agreement on the experience rather than
    the client's last local weights) as the anchor ``w*_k``, and measures on its own data of the
    experience how much each weight matters:
    ``F_k = 1/n sum_i (d log p(y_i | x_i, w*_k) / dw)^2``, with the labels of the data and the
    model in evaluation mode. Anchors and importances stay with the client.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        penalty: ``lambda``, unitless; ``0`` is plain local training.
        mode: ``separate`` keeps one anchor and one importance per experience, so the state grows by
            twice the model each time; ``online`` keeps the latest anchor and the importance
            ``F = decay * F + F_k``.
        decay: Weight of the past in ``online`` mode, in ``[0, 1]``; must be None otherwise.
        fisher_examples: Examples of the experience that the importance is measured on, the first
            ones of the shard; ``0`` takes all.

    Raises:
        ValueError: If a value is out of range, or ``decay`` does not fit ``mode``.

    Source:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017,
        arXiv:1612.00796; online: Schwarz et al., Progress & Compress, ICML 2018, arXiv:1805.06370.
        Deviation: the empirical Fisher (labels of the data) instead of labels drawn from the model.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        penalty: float,
        mode: Literal["separate", "online"] = "separate",
        decay: float | None = None,
        fisher_examples: int = 0,
    ) -> None:
        super().__init__(setting, training=training)
        if penalty < 0:
            raise ValueError(f"penalty must be 0 or more, got {penalty}")
        if mode not in ("separate", "online"):
            raise ValueError(f"mode must be 'separate' or 'online', got {mode!r}")
        if (mode == "online") != (decay is not None):
            raise ValueError(f"decay belongs to mode 'online'; got mode {mode!r}, decay {decay}")
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        if fisher_examples < 0:
            raise ValueError(f"fisher_examples must be 0 or more, got {fisher_examples}")
        self._penalty = penalty
        self._decay = decay
        self._fisher_examples = fisher_examples

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and the penalty of every past experience."""
        loss = super().loss(model, batch, down, state)
        for number in self._kept(state):
            anchor = self._to_device(state[f"ewc-anchor-{number}"])
            importance = self._to_device(state[f"ewc-importance-{number}"])
            params = [p for name, p in model.named_parameters() if name in anchor]
            loss = loss + self._penalty * quadratic(params, anchor.values(), importance.values())
        return loss

    def consolidate(self, model: Model, shard: Shard, down: Download, state: ClientState) -> None:
        """Anchor the model and measure the importance of its weights on the finished experience."""
        del down
        importance = self._fisher(model, shard)
        kept = self._kept(state)
        number = state.count(EXPERIENCES)
        if self._decay is not None:
            if kept:
                past = self._to_device(state["ewc-importance-0"])
                importance = {n: self._decay * past[n] + f for n, f in importance.items()}
            number = 0
        state[f"ewc-importance-{number}"] = importance
        state[f"ewc-anchor-{number}"] = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }
        state.set_count(EXPERIENCES, state.count(EXPERIENCES) + 1)

    def _kept(self, state: ClientState) -> range:
        """Numbers of the anchors in the state."""
        finished = state.count(EXPERIENCES)
        return range(finished if self._decay is None else min(finished, 1))

    def _fisher(self, model: Model, shard: Shard) -> Params:
        """Diagonal of the empirical Fisher information, named as the trainable parameters."""
        n = min(self._fisher_examples or len(shard), len(shard))
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not isinstance(shard.inputs, Tensor):
            return self._fisher_of_nodes(model, shard, n, params)
        buffers = dict(model.named_buffers())
        tasks = torch.zeros(n, dtype=torch.int64) if shard.tasks is None else shard.tasks[:n]
        allowed = None if shard.tasks is None else self.scenario.task_classes

        def negative_log_likelihood(
            weights: Params, inputs: Tensor, target: Tensor, task: Tensor
        ) -> Tensor:
            logits = torch.func.functional_call(model, (weights, buffers), (inputs[None],))
            masked = mask_logits(logits, task[None], allowed)
            return functional.cross_entropy(masked, target[None])

        device = self.setting.device
        examples = (shard.inputs[:n].to(device), shard.targets[:n].to(device), tasks.to(device))
        training = model.training
        model.eval()
        sums = squared_gradients(negative_log_likelihood, params, *examples)
        model.train(training)
        return {name: value / n for name, value in sums.items()}

    def _fisher_of_nodes(self, model: Model, shard: Shard, n: int, params: Params) -> Params:
        """The same on a graph, whose nodes share one forward pass."""
        (batch,) = shard.batches(0)
        batch = self.on_device(batch)
        training = model.training
        model.eval()
        logits = mask_logits(model(batch.inputs), batch.tasks, self.scenario.task_classes)
        losses = functional.cross_entropy(logits, batch.targets, reduction="none")[:n]
        sums = {name: torch.zeros_like(p) for name, p in params.items()}
        for loss in losses:
            gradients = torch.autograd.grad(
                loss, list(params.values()), retain_graph=True, materialize_grads=True
            )
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.square()
        model.train(training)
        return {name: value.detach() / n for name, value in sums.items()}

    def _to_device(self, params: Params) -> Params:
        return {name: tensor.to(self.setting.device) for name, tensor in params.items()}
