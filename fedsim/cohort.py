"""A round of a block of clients, trained at once.

Vectorisation is a way of executing a :class:`fedsim.client.Client`, not another interface: its
``load``, ``consolidate``, ``batches`` and ``upload`` run client by client, and its ``loss`` runs
once for all of them (see :mod:`fedsim.cohort_training`). The results equal the per-client loop's up
to rounding, about 1e-7. When it is done is decided by :mod:`fedsim.cohort_plan`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedsim.arrays import Params, Records
from fedsim.bundle import Bundle
from fedsim.cohort_batches import Feed, Step, whole_epochs
from fedsim.cohort_training import BlockTraining, Noise, PaddedDrawError
from fedsim.cohort_views import UnstackableError
from fedsim.data import Batch, Shard
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.training import seeded
from fedsim.wire import Download, Metrics, Upload

if TYPE_CHECKING:  # it is imported by the module that runs clients, which knows them already
    from fedsim.client import Client

_PADDING_TOLERANCE = 1e-5  # relative difference of a loss that rounding may explain
_ABSENT = object()


class Block:
    """One round of clients that have the same time, configuration and kinds of tensors.

    Args:
        client: Serves all of them.
        downs: What each received.
        states: What each remembers; written to.
        shards: What each holds, at least one example.
    """

    def __init__(
        self,
        client: "Client",
        downs: Sequence[Download],
        states: Sequence[ClientState],
        shards: Sequence[Shard],
    ) -> None:
        self.client = client
        self.downs, self.states, self.shards = downs, states, shards
        self._ids = [int(down.client_id) for down in downs if down.client_id is not None]
        self._round = downs[0].tick.round
        self._weights: list[Params] = [{} for _ in downs]  # every client's own, after training
        self._together = False  # whether all clients took the last step together
        self._loss_sums = torch.zeros(len(downs), dtype=torch.float64)
        self._examples = torch.zeros(len(downs), dtype=torch.float64)

    def train(self) -> list[Upload]:
        """Every client's upload.

        Raises:
            UnstackableError: If the clients cannot be trained at once.
        """
        before = dict(vars(self.client))
        noise, start = self._load()
        self.client.model.train()
        self._fit(start, noise)
        drawn = noise if self.client.overrides("upload") else None
        uploads = [self._upload(place, drawn, m) for place, m in enumerate(self._metrics())]
        changed = [n for n, v in vars(self.client).items() if before.get(n, _ABSENT) is not v]
        if changed:
            raise UnstackableError(f"it keeps {', '.join(changed)} on itself")
        return uploads

    # ---- before training -------------------------------------------------------------------

    def _load(self) -> tuple[Noise, Params]:
        """The clients' noise and the weights that they start from.

        Weights have one row per client, ``[k, ...]``, unless all share them for good.
        """
        client, slots = self.client, self.client.tensors()
        if not client.overrides("load", "consolidate") and self._have_same_arrays():
            client.load(client.model, self.downs[0], self.states[0])
            return Noise(self._noise_seed), self._stacked([slots])
        generators: dict[int, torch.Generator] = {}
        starts: list[Params] = []
        for place, client_id in enumerate(self._ids):
            with seeded(self._noise_seed(place), client.setting.device):
                client.load(client.model, self.downs[place], self.states[place])
                client._cross_boundary(client_id, self.downs[place], self.states[place])
                generators[place] = torch.Generator().set_state(torch.get_rng_state())
            starts.append({name: tensor.clone() for name, tensor in slots.items()})
        return Noise(self._noise_seed, generators), self._stacked(starts)

    def _noise_seed(self, place: int) -> int:
        return derive(self.client.setting.seed, "noise", self._round, self._ids[place])

    def _have_same_arrays(self) -> bool:
        first = self.downs[0].records.get("arrays")
        return first is not None and all(
            down.records["arrays"] is first
            or all(down.records["arrays"].get(n) is t for n, t in first.items())
            for down in self.downs[1:]
        )

    def _stacked(self, starts: Sequence[Params]) -> Params:
        """One row per client, except for tensors that stay the same for all."""
        model, count = self.client.model, len(self._ids)
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        names |= _running_statistics(model)
        weights: Params = {}
        for name, first in starts[0].items():
            rows = [start[name] for start in starts]
            if name not in names and all(torch.equal(row, first) for row in rows[1:]):
                weights[name] = first.clone()
            elif len(rows) < count:
                weights[name] = first.expand(count, *first.shape).clone()
            else:
                weights[name] = torch.stack(rows)
        return weights

    # ---- training --------------------------------------------------------------------------

    def _fit(self, start: Params, noise: Noise) -> None:
        """Train all clients; their weights afterwards become :meth:`trained`."""
        slots = self.client.tensors()
        own = [name for name, tensor in start.items() if tensor.dim() > slots[name].dim()]
        training = BlockTraining(self.client, start, own, self.downs, self.states, noise)
        self._run(training)
        training.check()
        shared = {name: tensor for name, tensor in start.items() if name not in own}
        if self._together:
            self._weights = list(Bundle(training.stacked(), shared, list(slots)).rows)
        else:
            self._weights = [{**shared, **weights} for weights in self._weights]

    def _run(self, training: BlockTraining) -> None:
        """Take all clients to the end of their batches."""
        client, options = self.client, self.client.training
        seed = client.setting.seed
        seeds = [derive(seed, "train", self._round, client_id) for client_id in self._ids]
        everyone = list(range(len(self._ids)))
        if not client.overrides("batches") and _are_alike(self.shards):
            for batch in whole_epochs(self.shards, options.batch_size, options.epochs, seeds):
                size = batch.targets.shape[1]
                step = Step(places=everyone, batch=batch, sizes=[size] * len(everyone))
                self._loss_sums.add_(training.take([step]).double().cpu(), alpha=size)
                self._examples += size
            self._together = True
            return
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        parts = zip(self.shards, self.downs, self.states, rngs, strict=True)
        feed = Feed([iter(client.batches(*part)) for part in parts])
        rows = everyone
        while drawn := feed.draw(rows):
            places = [place for place, row in enumerate(rows) if row in drawn]
            if len(places) < len(rows):
                left = [row for row in rows if row not in drawn]
                for row, weights in zip(left, training.keep(places), strict=True):
                    self._weights[row] = weights
                rows = list(drawn)
            self._take(feed, drawn, rows, training)
        self._together = len(rows) == len(everyone)
        if not self._together:
            for row, weights in zip(rows, training.weights(), strict=True):
                self._weights[row] = weights

    def _take(
        self, feed: Feed, drawn: dict[int, Batch], rows: list[int], training: BlockTraining
    ) -> None:
        """One step of every client that still has batches."""

        def pads(place: int, batch: Batch, padded: Batch) -> bool:
            down, state = self.downs[rows[place]], self.states[rows[place]]
            if self.client.setting.device != "cpu" and self.client.overrides("loss"):
                return False  # a GPU survives no wrong index
            try:
                losses = [training.single(place, b, down, state) for b in (batch, padded)]
            except (RuntimeError, IndexError, ValueError):  # no class is numbered -100
                return False
            return abs(losses[0] - losses[1]) <= _PADDING_TOLERANCE * max(1.0, abs(losses[0]))

        batches = list(drawn.values())
        steps = feed.steps(batches, pads)
        try:
            losses = training.take(steps)
        except PaddedDrawError:
            feed.forbid_padding()
            steps = feed.steps(batches, pads)
            losses = training.take(steps)
        self._note(rows, steps, losses)

    def _note(self, rows: list[int], steps: Sequence[Step], losses: Tensor) -> None:
        sizes = torch.zeros(len(rows), dtype=torch.float64)
        for step in steps:
            sizes[step.places] = torch.tensor(step.sizes, dtype=torch.float64)
        self._loss_sums[rows] += losses.double().cpu() * sizes
        self._examples[rows] += sizes

    # ---- after training --------------------------------------------------------------------

    def trained(self, place: int) -> Params:
        """The weights of a client of the block after training, named as the model's tensors."""
        return self._weights[place]

    def _metrics(self) -> list[Metrics]:
        """What every client says of its training."""
        return [{"loss": loss} for loss in (self._loss_sums / self._examples).tolist()]

    def _upload(self, place: int, noise: Noise | None, metrics: Metrics) -> Upload:
        """A client's upload, made by its own method if there is noise for that."""
        client, weights = self.client, self._weights[place]
        if noise is not None:
            records = self._own_upload(place, noise)
        elif self._together:
            records = {"arrays": weights}
        else:
            records = {"arrays": {name: weights[name] for name in client.tensors()}}
        return Upload(
            client_id=self._ids[place],
            num_examples=len(self.shards[place]),
            records=records,
            metrics=metrics,
        )

    def _own_upload(self, place: int, noise: Noise) -> Records:
        """What the client's own method makes of the trained model."""
        client = self.client
        client.load_arrays(self._weights[place])
        with seeded(0, client.setting.device):
            torch.set_rng_state(noise.of(place).get_state())
            return client.upload(
                client.model, self.shards[place], self.downs[place], self.states[place]
            )


def _are_alike(shards: Sequence[Shard]) -> bool:
    """Whether the shards can be stacked: plain tensors of equal shapes."""
    kinds = {
        (type(s.inputs), getattr(s.inputs, "shape", None), len(s), s.tasks is None) for s in shards
    }
    return len(kinds) == 1 and isinstance(shards[0].inputs, Tensor)


def _running_statistics(model: nn.Module) -> set[str]:
    """Names of the buffers that a forward pass in training mode changes."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
        for name, _ in module.named_buffers(recurse=False)
    }
