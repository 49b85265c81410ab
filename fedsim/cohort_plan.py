"""Whether clients are trained at once, how many, and the check that it makes no difference.

The choice follows a rule, not a clock: the same configuration always gives the same blocks, so
that two runs of it give the same bits.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fedsim.arrays import Params
from fedsim.backbones.graph_base import GraphBackbone
from fedsim.cohort import Block
from fedsim.cohort_kinds import Kind, alike, objection
from fedsim.cohort_views import UnstackableError
from fedsim.data import Shard
from fedsim.products import counted
from fedsim.seeding import derive, generator
from fedsim.state import ClientState
from fedsim.training import seeded
from fedsim.wire import Download, Upload

if TYPE_CHECKING:  # it is imported by the module that runs clients, which knows them already
    from fedsim.client import Client
    from fedsim.cohort_graph import JointGraphs

CohortSize = int | Literal["auto", "off"]

MIN_BLOCK = 8  # fewer clients at once than this gain nothing
MAX_BLOCK = 128
BLOCK_VALUES = 6_400_000  # numbers that a block may hold: 25 MB, beyond which caches stop helping
GRAPH_VALUES = 64_000_000  # the same for graphs: 250 MB
MAX_PRODUCTS = 10_000_000  # multiplications a step with convolutions, and ...
MAX_VALUES = 96_000  # ... numbers in weights and inputs without, beyond which the maths dominates
_AGREEMENT = 1e-3  # of a client's update, against the per-client loop's
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one step of one client takes.

    Attributes:
        products: Multiplications of the forward pass.
        convolves: Whether there are convolutions.
        weights: Numbers in the parameters.
        inputs: Numbers in the batch's inputs.
        held: Numbers that are kept for the backward pass.
    """

    products: float
    convolves: bool
    weights: int
    inputs: float
    held: float

    @property
    def values(self) -> float:
        """Numbers that a client of a block takes: what is held, weights, gradient, two moments."""
        return self.held + self.inputs + 4 * self.weights

    @property
    def is_small(self) -> bool:
        """Whether a step is so short that starting its operations dominates (measured on CPUs)."""
        if self.convolves:
            return self.products <= MAX_PRODUCTS and self.weights <= MAX_VALUES
        return self.weights + self.inputs <= MAX_VALUES


def measure(client: "Client", down: Download, state: ClientState) -> Workload:
    """The workload of a client's first step, scaled to a batch of full size."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel()
        return tensor

    client_id = client._trainee(down)
    shard = client._shard(client_id, down.tick.experience)
    with seeded(derive(client.setting.seed, "measure"), client.setting.device):
        client.load(client.model, down, state)
        client.model.train()
        rng = generator(client.setting.seed, "measure")
        batch = next(iter(client.batches(shard, down, state, rng)), None)
        if batch is None:
            raise UnstackableError("a round has no batches")
        is_graph = isinstance(client.model.backbone, GraphBackbone)
        if not isinstance(batch.inputs, Tensor) and not is_graph:
            raise UnstackableError(f"the inputs are {type(batch.inputs).__name__}, not tensors")
        hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        with counted(client.model) as products, hooks:
            client.loss(client.model, client.on_device(batch), down, state)
    usual = len(batch.targets) if is_graph else client.training.batch_size or len(batch.targets)
    scale = max(1.0, usual / len(batch.targets))
    return Workload(
        products=scale * products.count,
        convolves=products.convolves,
        weights=sum(p.numel() for p in client.model.parameters() if p.requires_grad),
        inputs=0 if is_graph else scale * batch.inputs.numel(),
        held=scale * held,
    )


class Cohort:
    """Trains several clients of a process at once where that is possible and pays.

    A client is declined, once and for all, if it overrides the course of training, if the optimiser
    mixes the elements of a tensor, or if a block shows that its methods depend on which client they
    run for in a way that no tensor tells; and, unless clients hold graphs, if moments stay with it
    or it is tested before it uploads. The reason is logged once. The first block of every kind is
    checked: one of its clients is trained by the per-client loop too, and both must agree. A client
    that overrides ``train_cohort`` does all of this in its own way.

    Args:
        client: Serves all clients.
        size: Clients a block at most; ``auto`` chooses by the workload, ``off`` is one.
    """

    def __init__(self, client: "Client", size: CohortSize) -> None:
        self.client = client
        self.reason: str | None = None  # why clients are trained one by one
        self._wanted = size
        self._size: int | None = 1 if size == "off" else None
        self._checked: set[object] = set()
        self._holds_graphs = isinstance(getattr(client.model, "backbone", None), GraphBackbone)
        self._joints: JointGraphs | None = None  # the graphs of the last blocks
        self._least = MIN_BLOCK if size == "auto" and not self._holds_graphs else 2

    def size(self, down: Download, state: ClientState) -> int:
        """Clients a block at most; one if the client is declined.

        Args:
            down: A client's download, by which the workload is measured once.
            state: A copy of this client's state.
        """
        if self.reason is not None:
            return 1
        if self._size is None:
            try:
                own = self.client.overrides("train_cohort")
                self._size = self._largest() if own else self._choose(down, state)
            except UnstackableError as error:
                self.decline(str(error))
                return 1
        return self._size

    def decline(self, reason: str) -> None:
        """Train one by one from now on, and say why."""
        if self.reason is None:
            self.reason = reason
            level = logging.INFO if self._wanted == "auto" else logging.WARNING
            name = type(self.client).__name__
            _LOG.log(level, "%s: clients are trained one by one, since %s", name, reason)

    def train(
        self,
        downs: Sequence[Download],
        states: Sequence[ClientState],
        spare: Callable[[int], ClientState],
    ) -> list[Upload]:
        """One round of each client; the uploads in the order of the downloads.

        Args:
            downs: What each received.
            states: What each remembers; written to.
            spare: A fresh copy of the state that a client came with, by its place in ``states``.

        Raises:
            UnstackableError: If the clients cannot be trained at once.
        """
        if self.client.overrides("train_cohort"):
            return self.client.train_cohort(downs, states)
        kinds: dict[Kind, list[int]] = {}
        uploads: dict[int, Upload] = {}
        last: tuple[Download, Kind] | None = None  # most are of the same kind as the one before
        for place, (down, state) in enumerate(zip(downs, states, strict=True)):
            is_empty = not len(state)
            kind = last[1] if last and is_empty and alike(down, last[0]) else None
            kind = kind or Kind.of(down, state)
            last = (down, kind) if is_empty else None
            kinds.setdefault(kind, []).append(place)
        for kind, places in kinds.items():
            ids = [self.client._trainee(downs[place]) for place in places]
            self.client.setting.prefetch(kind.tick.round, ids)
            shards = [self._shard(downs[place]) for place in places]
            busy = [p for p, s in zip(places, shards, strict=True) if s is not None]
            if len(busy) < self._least:
                uploads |= {p: self.client.train(downs[p], states[p]) for p in places}
                continue
            uploads |= {p: self.client.train(downs[p], states[p]) for p in places if p not in busy}
            block = self._block(
                [downs[p] for p in busy],
                [states[p] for p in busy],
                [s for s in shards if s is not None],
            )
            uploads |= dict(zip(busy, block.train(), strict=True))
            if kind.names not in self._checked:
                copies = spare(busy[0]), spare(busy[0])
                self._check(block.trained(0), downs[busy[0]], *copies)
                self._checked.add(kind.names)
        return [uploads[place] for place in range(len(downs))]

    def _block(
        self, downs: Sequence[Download], states: Sequence[ClientState], shards: Sequence[Shard]
    ) -> Block:
        if not self._holds_graphs:
            return Block(self.client, downs, states, shards)
        from fedsim.cohort_graph import JointGraphs  # they load torch_geometric
        from fedsim.cohort_graph_training import GraphBlock

        self._joints = self._joints or JointGraphs(self.client)
        return GraphBlock(self.client, downs, states, shards, self._joints)

    def _shard(self, down: Download) -> Shard | None:
        """What a client trains on, or None if it has nothing to do."""
        client_id = self.client._trainee(down)
        if down.tick.experience < 0:
            return None
        shard = self.client._shard(client_id, down.tick.experience)
        return shard if len(shard) else None

    def _largest(self) -> int:
        """Clients a block at most, for a method that trains blocks in its own way."""
        return self._wanted if isinstance(self._wanted, int) else MAX_BLOCK

    def _choose(self, down: Download, state: ClientState) -> int:
        reason = objection(self.client, graphs=self._holds_graphs)
        if reason is None and self._holds_graphs:
            from fedsim.cohort_graph_plan import graph_objection  # it loads torch_geometric

            reason = graph_objection(self.client)
        if reason is not None:
            raise UnstackableError(reason)
        if isinstance(self._wanted, int):
            return self._wanted
        workload = measure(self.client, down, state)
        if not self._pays(workload):
            raise UnstackableError("a step is long enough to gain nothing from company")
        room = GRAPH_VALUES if self._holds_graphs else BLOCK_VALUES
        size = min(MAX_BLOCK, int(room / workload.values))
        if size < self._least:
            raise UnstackableError("a step holds too much memory to gain from company")
        _LOG.info(
            "%s: up to %d clients at once on %s, about %.0f MB",
            type(self.client).__name__,
            size,
            self.client.setting.device,
            size * workload.values * 4 / 1e6,
        )
        return size

    def _pays(self, workload: Workload) -> bool:
        if self._holds_graphs:
            from fedsim.cohort_graph_plan import gains

            return gains(self.client, workload.weights)
        return self.client.setting.device != "cpu" or workload.is_small

    def _check(
        self, trained: Params, down: Download, state: ClientState, copy: ClientState
    ) -> None:
        """Compare a client of a block with the per-client loop."""
        client = self.client
        noise = derive(client.setting.seed, "noise", down.tick.round, client._trainee(down))
        with seeded(noise, client.setting.device):
            client.load(client.model, down, copy)
        start = {name: tensor.clone() for name, tensor in client.tensors().items()}
        client.train(down, state)
        for name, after in client.tensors().items():
            if not after.is_floating_point():
                continue
            update = float((after - start[name]).norm())
            gap = float((after - trained[name]).norm())
            if not gap <= _AGREEMENT * update + 1e-5 * float(after.norm()) + 1e-6:
                raise UnstackableError(
                    f"a block and the per-client loop disagree on {name!r}: apart by {gap:.1e},"
                    f" the update being {update:.1e}"
                )
