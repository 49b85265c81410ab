"""Client of FED-PUB: private masks on the weights, and an embedding of what the model does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clients.fedpub_block import MeanGraph
from clients.fedpub_cohort import reason_against, train_cohort
from fedsim.arrays import Params, Records
from fedsim.client import Client, Setting
from fedsim.cohort_graph import JointGraphs
from fedsim.data import Batch, Inputs, Shard
from fedsim.functional.masks import (
    Init,
    attach_masks,
    cut,
    l1_penalty,
    masks,
    proximal_penalty,
    soft_threshold,
    sparsity,
    weights,
)
from fedsim.functional.packing import pack
from fedsim.model import Model
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.training import LocalTraining, seeded
from fedsim.wire import Download, Metrics, Upload

Penalties = Literal["reference", "connected", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """How the weights are masked and what that costs in the loss.

    Attributes:
        penalties: ``connected``: the paper's, with their gradient. ``reference``: added to the
            reported loss without any gradient, as the authors' code does. ``none``: left out.
        l1: Coefficient of ``sum |m|``.
        proximal: Coefficient of the distance to the received weights; there is none in round 1.
        squared: Whether that is one squared norm (the paper) or a sum of one norm per tensor (its
            code).
        threshold: In evaluation, mask entries below it count as zero.
        init: First masks: ``ones`` or ``xavier``.
        lr: Learning rate of the masks; None takes that of the weights.
        shrink: The L1 coefficient of a proximal step instead of a gradient: after every optimiser
            step mask entries move by ``lr * shrink`` towards zero and stop there.
        adaptive: Whether that step is taken in Adam's metric, ``lr * shrink / (sqrt(v) + eps)``:
            entries of which the loss knows nothing are zero at once, important ones hardly move.
    """

    penalties: Penalties = "reference"
    l1: float = 0.001
    proximal: float = 0.001
    squared: bool = True
    threshold: float = 0.001
    init: Init = "ones"
    lr: float | None = None
    shrink: float = 0.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.penalties not in get_args(Penalties):
            raise ValueError(
                f"client.masking.penalties must be one of {', '.join(get_args(Penalties))}, got"
                f" {self.penalties!r}"
            )
        for name in ("l1", "proximal", "threshold", "shrink"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"client.masking.{name} must be 0 or more, got {getattr(self, name)}"
                )
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"client.masking.lr must be positive or null, got {self.lr}")


class FedPub(Client):
    """Trains weights and masks, ``W * M``; sends ``W`` and what the model does, keeps ``M``.

    The model in evaluation mode, masks included, embeds a random graph that all clients share: the
    mean over its nodes of what precedes the last activation. Masks and, with
    ``training.keep_optimizer``, the optimiser's moments stay in the client's state.

    Args:
        setting: What all clients share; the scenario must have a ``proxy`` graph and the backbone
            must ``embed``.
        training: Optimiser, epochs, batch size.
        masking: Masks and penalties.
        proxy: Options of the scenario's ``proxy`` graph.
        sparse: Send only the weights whose mask is not zero; the server takes the others as they
            were sent out. This tells the server which entries of the mask are zero.

    Raises:
        ValueError: If scenario or backbone is none for graphs.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206. As in
        its code the masked weights are those with two dimensions and more; proximal shrinking and
        sparse transfer are ours. The step in Adam's metric is that of Yun et al., Adaptive Proximal
        Gradient Methods for Structured Neural Networks, NeurIPS 2021.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        masking: Masking,
        proxy: dict[str, float],
        sparse: bool = False,
    ) -> None:
        super().__init__(setting, training=training)
        make_proxy = getattr(setting.scenario, "proxy", None)
        if make_proxy is None or not hasattr(self.model.backbone, "embed"):
            raise ValueError("client=fedpub needs a graph scenario and a graph backbone")
        self.masking = masking
        self.sparse = sparse
        self.proxy: Inputs = make_proxy(setting.seed, **proxy).to(setting.device)
        attach_masks(self.model, threshold=masking.threshold, init=masking.init)
        plain: dict[str, Tensor] = {**weights(self.model), **dict(self.model.named_buffers())}
        self._slots = {name: plain[name].detach() for name in self._slots}
        self.reason = reason_against(self)  # why clients are trained one by one, if they are
        self.joints = JointGraphs(self)  # of cohorts that come again

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """The received weights, and the client's own masks: fresh ones at first."""
        self.load_arrays(down.records["arrays"])
        own = state["masks"] if "masks" in state else self.fresh_masks(down.client_id)
        with torch.no_grad():
            for name, mask in masks(model).items():
                mask.copy_(own[name])

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and the penalties, see :class:`Masking`."""
        loss = super().loss(model, batch, down, state)
        options = self.masking
        if options.penalties == "none":
            return loss
        with torch.set_grad_enabled(options.penalties == "connected"):
            penalty = options.l1 * l1_penalty(masks(model))
            if down.tick.round > 1 and options.proximal > 0:
                anchor = down.records["arrays"]
                live = weights(model)
                received = {name: anchor[name].to(w.device) for name, w in live.items()}
                distance = proximal_penalty(live, received, squared=options.squared)
                penalty = penalty + options.proximal * distance
        return loss + penalty

    def measure(self, down: Download, state: ClientState) -> Metrics:
        """See :meth:`Client.measure`; ``mask_zeros`` is the share of entries that count as zero."""
        zeros = sparsity(masks(self.model), self.masking.threshold)
        return {**super().measure(down, state), "mask_zeros": zeros}

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """Weights, or those that count, and the embedding ``[d]``; masks go into the state."""
        del shard, down
        state["masks"] = {name: mask.detach().clone() for name, mask in masks(model).items()}
        arrays = {name: tensor.clone() for name, tensor in self._slots.items()}
        return self.records(arrays, state["masks"], self.embedding(model))

    def records(self, arrays: Params, own: Params, embedding: Tensor) -> Records:
        """What is sent of the weights, given the masks, and of the embedding."""
        parts = packed(arrays, own, self.masking.threshold) if self.sparse else {"arrays": arrays}
        return {**parts, "embedding": {"mean": embedding}}

    @torch.no_grad()
    def embedding(self, model: Model) -> Tensor:
        """Mean output of the last convolution on the shared random graph, ``[d]``."""
        model.eval()
        embed: Callable[[Inputs], Tensor] = model.backbone.embed  # type: ignore[assignment]
        return embed(self.proxy).mean(dim=0)

    def train_cohort(
        self, downs: Sequence[Download], states: Sequence[ClientState]
    ) -> list[Upload]:
        """One round of several clients, all at once where the model allows it."""
        return train_cohort(self, downs, states)

    @cached_property
    def mean_proxy(self) -> MeanGraph:
        """The shared random graph, prepared for embeddings of many models."""
        return MeanGraph(self.model.backbone, self.proxy)  # type: ignore[arg-type]

    def fresh_masks(self, client_id: int | None) -> Params:
        """Masks of a client that has none."""
        fresh = {name: torch.ones_like(mask) for name, mask in masks(self.model).items()}
        if self.masking.init == "xavier":
            path = -1 if client_id is None else client_id
            with seeded(derive(self.setting.seed, "masks", path), self.setting.device):
                for mask in fresh.values():
                    nn.init.xavier_uniform_(mask)
        return fresh

    def _optimizer(
        self, parameters: list[nn.Parameter], down: Download, state: ClientState
    ) -> Optimizer:
        own = list(masks(self.model).values())
        optimizer = super()._optimizer(self.groups(parameters, own), down, state)
        self.shrink_after_steps(optimizer, own)
        return optimizer

    def groups(self, parameters: list[nn.Parameter], own: list[nn.Parameter]) -> list[Any]:
        """The optimiser's parameter groups: the masks have their own if they have a rate."""
        if self.masking.lr is None:
            return parameters
        ids = {id(mask) for mask in own}
        rest = [p for p in parameters if id(p) not in ids]
        return [{"params": rest}, {"params": own, "lr": self.masking.lr}]

    def shrink_after_steps(self, optimizer: Optimizer, own: list[nn.Parameter]) -> None:
        """Soft-threshold the masks after every step of the optimiser."""
        if self.masking.shrink == 0:
            return
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        if self.masking.adaptive and not isinstance(optimizer, torch.optim.Adam):
            raise ValueError(
                f"client.masking.adaptive needs optimizer=adam, got {type(optimizer).__name__}"
            )

        @torch.no_grad()
        def shrink(*_: object) -> None:
            for mask in own:
                step = groups[id(mask)]["lr"] * self.masking.shrink
                if self.masking.adaptive:
                    step = step / adam_scale(optimizer.state[mask], groups[id(mask)])
                mask.copy_(soft_threshold(mask, step))

        optimizer.register_step_post_hook(shrink)


def adam_scale(state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """What Adam divides a step by, ``sqrt(v / (1 - beta^t)) + eps``, as the mask's shape."""
    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
    scale: Tensor = (state["exp_avg_sq"] / correction).sqrt_().add_(float(group["eps"]))
    return scale


def packed(arrays: Params, own: Params, threshold: float) -> Records:
    """Records of the weights whose mask counts, and of the tensors that have no mask whole."""
    kept = {name: cut(mask, threshold) != 0 for name, mask in own.items()}
    parts = {name: pack(arrays[name].cpu(), mask.cpu()) for name, mask in kept.items()}
    return {
        "dense": {name: tensor for name, tensor in arrays.items() if name not in kept},
        "bits": {name: bits for name, (bits, _) in parts.items()},
        "values": {name: values for name, (_, values) in parts.items()},
    }
