"""A round of a block of clients that hold graphs, trained at once on the disjoint union of them.

The scores of all clients come from one forward pass over stacked weights; every client's own
``loss`` is then called with a stand-in for its model that gives its scores and its weights.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from fedsim.arrays import Params
from fedsim.bundle import Bundle
from fedsim.cohort import Block
from fedsim.cohort_descent import Descent, fuse, leave_moments, restore_moments
from fedsim.cohort_graph import GraphDropout, Joint, JointGraphs, Network, tested
from fedsim.cohort_training import Noise
from fedsim.cohort_views import UnstackableError
from fedsim.data import Batch, Inputs, Shard
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.wire import Download, Metrics, Upload

if TYPE_CHECKING:  # it is imported by the modules that run clients, which know them already
    from fedsim.client import Client

_SCORING = ("measure", "_scores", "score", "predict")


class GraphBlock(Block):
    """One round of clients that hold graphs; see :class:`fedsim.cohort.Block`.

    Args:
        client: Serves all of them.
        downs: What each received.
        states: What each remembers; written to.
        shards: What each holds, at least one row.
        joints: Makes one graph of theirs.
    """

    def __init__(
        self,
        client: "Client",
        downs: Sequence[Download],
        states: Sequence[ClientState],
        shards: Sequence[Shard],
        joints: JointGraphs,
    ) -> None:
        super().__init__(client, downs, states, shards)
        self._joints, self._joint = joints, joints.of(self._ids)
        self._network = Network(client.model.backbone)  # type: ignore[arg-type]
        self._stack: Params = {}  # the weights after training, one row per client

    def train(self) -> list[Upload]:
        """See :meth:`fedsim.cohort.Block.train`."""
        try:
            return super().train()
        except Exception:
            self._joints.forget(self._ids)  # smaller blocks may need its memory
            raise

    def _fit(self, start: Params, noise: Noise) -> None:
        client = self.client
        generators = [noise.of(place) for place in range(len(self._ids))]
        training = GraphTraining(
            client, start, self.downs, self.states, self._joint, self._network, generators
        )
        sizes = torch.tensor([len(shard) for shard in self.shards], dtype=torch.float64)
        for batches in self._batches():
            self._loss_sums += training.take(batches).double() * sizes
            self._examples += sizes
        self._stack = training.stacked()
        self._weights = list(Bundle(self._stack, {}, list(client.tensors())).rows)
        self._together = True
        if client.training.keep_optimizer:
            training.leave_moments(self.states)

    def _batches(self) -> Iterator[list[Batch]]:
        """One batch of every client, as long as they last.

        Raises:
            UnstackableError: If a batch is not the client's whole graph, or some have more of them.
        """
        client, seed = self.client, self.client.setting.seed
        rngs = [
            torch.Generator().manual_seed(derive(seed, "train", self._round, i)) for i in self._ids
        ]
        parts = zip(self.shards, self.downs, self.states, rngs, strict=True)
        feeds = [iter(client.batches(*part)) for part in parts]
        while True:
            drawn = [next(feed, None) for feed in feeds]
            batches = [batch for batch in drawn if batch is not None]
            if not batches:
                return
            if len(batches) < len(feeds):
                raise UnstackableError("some clients take more steps than others")
            for batch, shard in zip(batches, self.shards, strict=True):
                if batch.inputs is not shard.inputs or batch.targets is not shard.targets:
                    raise UnstackableError("a batch is not the client's whole graph")
            yield batches

    def _metrics(self) -> list[Metrics]:
        metrics = super()._metrics()
        client = self.client
        if not client.tests_in_training(self.downs[0]):
            return metrics
        if client.overrides(*_SCORING):
            found = [self._alone(place) for place in range(len(metrics))]
        else:
            with torch.no_grad():
                scores = self._network.logits(self._joint[0], self._stack, None, None)
                found = tested(client, self._joint, scores)
        return [{**mine, **more} for mine, more in zip(metrics, found, strict=True)]

    def _alone(self, place: int) -> Metrics:
        """What a client measures in a way of its own."""
        self.client.load_arrays(self._weights[place])
        found = self.client.measure(self.downs[place], self.states[place])
        self.client.model.train()
        return found


class GraphTraining(Descent):
    """Parameters, optimiser and losses of the clients of a block.

    Args:
        client: Whose loss and optimiser.
        weights: Named as the model's tensors, ``[k, ...]``.
        downs: What the clients received.
        states: What they remember.
        joint: Their graphs as one.
        network: Computes the scores.
        generators: Every client's noise.
    """

    def __init__(
        self,
        client: "Client",
        weights: Params,
        downs: Sequence[Download],
        states: Sequence[ClientState],
        joint: Joint,
        network: Network,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__(client, weights, list(weights), downs[0], ClientState())
        self._downs, self._states = downs, states
        self._graph, self._rows = joint[0], joint[1]["train"]
        self._sizes: list[int] = self._rows.counts.tolist()
        self._network, self._noise = network, GraphDropout(generators)
        fuse(self._optimizer)
        if client.training.keep_optimizer and "optimizer" in states[0]:
            restore_moments(self._optimizer, states)

    def take(self, batches: Sequence[Batch]) -> Tensor:
        """One optimiser step of every client; returns their losses ``[k]``."""
        self._optimizer.zero_grad(set_to_none=True)
        scores = self._network.logits(self._graph, dict(self._params), self._rows, self._noise)
        losses = self._losses(batches, torch.split(scores, self._sizes))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.descend()
        return losses.detach()

    def leave_moments(self, states: Sequence[ClientState]) -> None:
        """Every client's row of the optimiser's moments into its state."""
        leave_moments(self._optimizer, states)

    def _losses(self, batches: Sequence[Batch], scores: Sequence[Tensor]) -> Tensor:
        client, model = self._client, self._client.model
        views = _Views(self._params)
        before = torch.get_rng_state()
        losses: list[Tensor] = []
        try:
            for place, batch in enumerate(batches):
                stand_in = StandIn(batch.inputs, scores[place], views, place)
                client.model = stand_in  # type: ignore[assignment]
                loss = client.loss(stand_in, batch, self._downs[place], self._states[place])  # type: ignore[arg-type]
                if loss.dim() != 0 or not stand_in.is_used:
                    raise UnstackableError("the loss is no scalar or does not call the model")
                losses.append(loss)
        finally:
            client.model = model
        if not torch.equal(before, torch.get_rng_state()):
            raise UnstackableError("the loss draws random numbers")
        return torch.stack(losses)


class _Views:
    """Every client's rows of the stacked parameters, made when a loss asks for them."""

    def __init__(self, params: dict[str, nn.Parameter]) -> None:
        self._params = params
        self._rows: dict[str, tuple[Tensor, ...]] = {}

    def of(self, place: int) -> Iterator[tuple[str, Tensor]]:
        if not self._rows:  # one operation for all clients, so that there is one gradient to stack
            self._rows = {name: param.unbind(0) for name, param in self._params.items()}
        return ((name, rows[place]) for name, rows in self._rows.items())


class StandIn:
    """What a client's loss gets for its model: the scores of its batch, and its weights.

    Args:
        inputs: The batch's.
        scores: Of the batch, ``[n, K]``.
        views: Weights of all clients.
        place: Whose they are.
    """

    training = True

    def __init__(self, inputs: Inputs, scores: Tensor, views: _Views, place: int) -> None:
        self._inputs, self._scores, self._views, self._place = inputs, scores, views, place
        self.is_used = False

    def __call__(self, inputs: Inputs) -> Tensor:
        """The scores, once: a second pass would draw other dropout."""
        if inputs is not self._inputs or self.is_used:
            raise UnstackableError("the loss calls the model twice, or not with its batch")
        self.is_used = True
        return self._scores

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The client's weights by name."""
        return self._views.of(self._place)

    def parameters(self) -> Iterator[Tensor]:
        """The client's weights."""
        return (tensor for _, tensor in self.named_parameters())

    def __getattr__(self, name: str) -> NoReturn:
        raise UnstackableError(f"the loss reads {name!r} of the model")
