"""FED-PUB's local round for several clients at once.

Weights, masks and the optimiser's moments of the clients are stacked, ``[k, ...]``; a step on the
stacks is everybody's step, since the optimiser treats every element alike. What comes out differs
from the per-client loop by rounding only, and each client's state has the same form.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.optim import Optimizer

from clients.fedpub_block import mean_embedding
from fedsim.arrays import Params
from fedsim.backbones.graph import GCN
from fedsim.cohort_descent import fuse, leave_moments, restore_moments
from fedsim.cohort_graph import GraphDropout, Network, tested
from fedsim.functional.masks import cut, masks, weights
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.wire import Download, Metrics, Upload

if TYPE_CHECKING:
    from clients.fedpub import FedPub

ELEMENTWISE = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad)


def train_cohort(
    client: "FedPub", downs: Sequence[Download], states: Sequence[ClientState]
) -> list[Upload]:
    """One round of every client, in the order of the downloads."""
    uploads: dict[int, Upload] = {}
    kinds: dict[object, list[int]] = {}
    for place, (down, state) in enumerate(zip(downs, states, strict=True)):
        kinds.setdefault(_kind(client, down, state), []).append(place)
    for kind, places in kinds.items():
        if kind is None or len(places) < 2:
            uploads |= {p: client.train(downs[p], states[p]) for p in places}
        else:
            block = Block(client, [downs[p] for p in places], [states[p] for p in places])
            uploads |= dict(zip(places, block.train(), strict=True))
    return [uploads[place] for place in range(len(downs))]


def reason_against(client: "FedPub") -> str | None:
    """Why clients are trained one by one, or None if they can be trained at once."""
    scenario, model, training = client.scenario, client.model, client.training
    if not isinstance(model.backbone, GCN) or not isinstance(model.head, nn.Linear):
        return "only a GCN with a linear head is stacked"
    if scenario.num_experiences > 1 or scenario.task_classes is not None:
        return "the graph changes over time"
    if training.clip_norm is not None:
        return "a gradient's norm is one client's"
    if not isinstance(training.optimizer([nn.Parameter(torch.zeros(1))]), ELEMENTWISE):
        return "the optimiser mixes the elements of a tensor"
    return None


def _kind(client: "FedPub", down: Download, state: ClientState) -> object:
    """What clients of a block have in common; None for those that train alone."""
    if client.reason is not None or down.client_id is None or down.tick.experience < 0:
        return None
    if len(client._shard(down.client_id, down.tick.experience)) == 0:
        return None
    steps: tuple[tuple[str, float], ...] = ()
    if "optimizer" in state:
        moments = state["optimizer"].items()
        steps = tuple((name, float(value)) for name, value in moments if value.dim() == 0)
    return steps, tuple(sorted(down.config.items()))


class Block:
    """One round of clients whose optimisers have taken equally many steps.

    Args:
        client: Serves all of them.
        downs: What each received.
        states: What each remembers; written to.
    """

    def __init__(
        self, client: "FedPub", downs: Sequence[Download], states: Sequence[ClientState]
    ) -> None:
        self._client, self._downs, self._states = client, downs, states
        self._ids = [client._trainee(down) for down in downs]
        self._round = downs[0].tick.round
        self._options = client.masking
        self._joint = client.joints.of(self._ids)
        self._network = Network(client.model.backbone)  # type: ignore[arg-type]
        received = [down.records["arrays"] for down in downs]
        own = [s["masks"] if "masks" in s else client.fresh_masks(i) for i, s in self._clients()]
        self._weights = {name: _leaf(received, name) for name in weights(client.model)}
        self._masks = {name: _leaf(own, name) for name in masks(client.model)}

    def train(self) -> list[Upload]:
        """Every client's upload."""
        client = self._client
        losses = self._fit()
        kept = {name: cut(m.detach(), self._options.threshold) for name, m in self._masks.items()}
        metrics: list[Metrics] = [{"loss": loss} for loss in losses]
        with torch.no_grad():
            product = self._product(kept)
            if client.tests_in_training(self._downs[0]):
                for mine, measured in zip(metrics, self._measure(product, kept), strict=True):
                    mine |= measured
            embeddings = mean_embedding(self._network, client.mean_proxy, product)
        places = range(len(losses))
        return [self._upload(place, embeddings[place], metrics[place]) for place in places]

    # ---- training --------------------------------------------------------------------------

    def _fit(self) -> list[float]:
        """Train; every client's mean loss."""
        client, (graph, split) = self._client, self._joint
        rows = split["train"]
        optimizer = self._optimizer()
        seed = client.setting.seed
        seeds = [derive(seed, "noise", self._round, i) for i in self._ids]
        noise = GraphDropout([torch.Generator().manual_seed(s) for s in seeds])
        epochs = client.training.epochs
        own: Params = {**self._masks}
        total = torch.zeros(len(self._ids))
        for epoch in range(epochs):
            optimizer.zero_grad(set_to_none=True)
            product = {n: t.detach().requires_grad_() for n, t in self._product(own).items()}
            scores = self._network.logits(graph, product, rows, noise)
            each = functional.cross_entropy(scores, rows.targets, reduction="none")
            losses = torch.zeros(len(self._ids)).index_add(0, rows.owner, each) / rows.counts
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._pass_on(product)
            penalty = self._penalty(epoch)
            if penalty.requires_grad:
                penalty.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += losses.detach() + penalty.detach()
        if client.training.keep_optimizer:
            leave_moments(optimizer, self._states)
        return (total / epochs).tolist() if epochs else [float("nan")] * len(self._ids)

    @torch.no_grad()
    def _product(self, own: Params) -> Params:
        """The weights with these masks multiplied in, in memory that the next call overwrites."""
        product: Params = {**self._weights}
        for name, mask in own.items():
            room = self._joint[0].room(name, mask.shape)
            product[name] = torch.mul(self._weights[name], mask, out=room)
        return product

    @torch.no_grad()
    def _pass_on(self, product: Params) -> None:
        """The gradients of products ``W M`` to both factors, the first in place."""
        for name, leaf in product.items():
            weight, grad = self._weights[name], leaf.grad
            if grad is None:
                raise RuntimeError(f"the loss does not depend on {name}")
            if name in self._masks:
                mask = self._masks[name]
                room = self._joint[0].room(f"gradient of {name}", mask.shape)
                mask.grad = torch.mul(grad, weight, out=room)
                grad.mul_(mask)
            weight.grad = grad

    def _penalty(self, epoch: int) -> Tensor:
        """Every client's penalties, see :class:`clients.fedpub.Masking`, ``[k]``."""
        options = self._options
        if options.penalties == "none":
            return torch.zeros(len(self._ids))
        with torch.set_grad_enabled(options.penalties == "connected"):
            flat = [mask.flatten(1) for mask in self._masks.values()]
            norms = [torch.linalg.vector_norm(mask, 1, dim=1) for mask in flat]
            penalty = options.l1 * torch.stack(norms).sum(0)
            if self._round > 1 and options.proximal > 0 and epoch > 0:  # at first there is no gap
                received = [down.records["arrays"] for down in self._downs]
                gaps = [
                    (w - torch.stack([r[name] for r in received])).flatten(1)
                    for name, w in self._weights.items()
                ]
                parts = [
                    gap.square().sum(1) if options.squared else torch.linalg.vector_norm(gap, dim=1)
                    for gap in gaps
                ]
                penalty = penalty + options.proximal * torch.stack(parts).sum(0)
            return penalty

    def _optimizer(self) -> Optimizer:
        """The optimiser over the stacks, in the order of the per-client loop, moments put back."""
        client = self._client
        names = {id(p): self._weights[name] for name, p in weights(client.model).items()}
        names |= {id(p): self._masks[name] for name, p in masks(client.model).items()}
        parameters = [names[id(p)] for p in client.model.parameters()]
        own = list(self._masks.values())
        optimizer = client.training.optimizer(client.groups(parameters, own))
        if client.setting.device == "cpu":
            fuse(optimizer)
        if client.training.keep_optimizer and "optimizer" in self._states[0]:
            restore_moments(optimizer, self._states)
        clock = client.setting.clock
        factor = client.training.schedule((self._round - 1) / clock.num_rounds)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        client.shrink_after_steps(optimizer, own)
        return optimizer

    # ---- after training --------------------------------------------------------------------

    def _measure(self, product: Params, kept: Params) -> list[Metrics]:
        """What :meth:`clients.fedpub.FedPub.measure` says of every client."""
        client = self._client
        scores = self._network.logits(self._joint[0], product, None, None)
        entries = sum(mask[0].numel() for mask in kept.values())
        zeros = [
            1.0 - sum(int(mask[place].count_nonzero()) for mask in kept.values()) / entries
            for place in range(len(self._ids))
        ]
        found = tested(client, self._joint, scores)
        return [{**mine, "mask_zeros": z} for mine, z in zip(found, zeros, strict=True)]

    def _upload(self, place: int, embedding: Tensor, metrics: Metrics) -> Upload:
        client, state = self._client, self._states[place]
        state["masks"] = {name: mask.detach()[place] for name, mask in self._masks.items()}
        order = self._downs[0].records["arrays"]
        arrays = {name: self._weights[name].detach()[place] for name in order}
        return Upload(
            client_id=self._ids[place],
            num_examples=int(self._joint[1]["train"].counts[place]),
            records=client.records(arrays, state["masks"], embedding),
            metrics=metrics,
        )

    def _clients(self) -> list[tuple[int, ClientState]]:
        return list(zip(self._ids, self._states, strict=True))


def _leaf(parts: Sequence[Params], name: str) -> nn.Parameter:
    return nn.Parameter(torch.stack([part[name] for part in parts]))
