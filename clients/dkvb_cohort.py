"""Value training of several clients at once: one embedding bag over the rows that they touch.

A client touches few rows of the table, so its copy of the table is never made: the rows that its
examples fetch are numbered anew, those of all clients stand one below the other, and one bag
serves a step of everybody.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.arrays import Records
from fedsim.client import Client
from fedsim.cohort_descent import is_plain_descent
from fedsim.cohort_kinds import runs_of_alike
from fedsim.data import Shard
from fedsim.functional.keyvalue import vote
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

if TYPE_CHECKING:
    from clients.dkvb import DKVB


class Touched(NamedTuple):
    """The rows that a shard's examples fetch.

    Attributes:
        numbers: The different ones, ascending, ``[m]``.
        places: Where among those the fetched ones are, ``[n, f]``.
        counts: How often each is fetched in a pass over the shard, ``[m]``.
    """

    numbers: Tensor
    places: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Touched":
        """Rows ``[n, f]`` numbered anew."""
        numbers, places, counts = torch.unique(rows, return_inverse=True, return_counts=True)
        return cls(numbers.long(), places, counts)


def phase(down: Download) -> str:
    """What the round is for: ``keys``, ``values`` or ``unlearn``."""
    return str(down.config.get("phase", "values"))


def reason_against(client: "DKVB") -> str | None:
    """Why values are trained client by client, or None if they can be trained at once."""
    training = client.training
    if client.head.decoder is not None:
        return "a decoder reads the values"
    if training.keep_optimizer or not is_plain_descent(
        training.optimizer([nn.Parameter(torch.zeros(1))])
    ):
        return "the optimiser moves values that no example fetches"
    if client.setting.evaluation.in_training or client.scenario.evaluation_points:
        return "clients are tested before the merge"
    if client.scenario.task_classes is not None:
        return "classes depend on the task"
    return None


def train_cohort(
    client: "DKVB", downs: Sequence[Download], states: Sequence[ClientState]
) -> list[Upload]:
    """One round of every client, in the order of the downloads."""
    uploads: dict[int, Upload] = {}
    for places in runs_of_alike(downs):
        busy = [p for p in places if _has_examples(client, downs[p])]
        if len(busy) < 2 or phase(downs[places[0]]) != "values":
            busy = []
        uploads |= {p: client.train(downs[p], states[p]) for p in places if p not in busy}
        if busy:
            trained = _train(client, [downs[p] for p in busy], [states[p] for p in busy])
            uploads |= dict(zip(busy, trained, strict=True))
    return [uploads[place] for place in range(len(downs))]


def _has_examples(client: "DKVB", down: Download) -> bool:
    client_id, position = client._trainee(down), down.tick.experience
    return position >= 0 and len(client._shard(client_id, position)) > 0


def _train(
    client: "DKVB", downs: Sequence[Download], states: Sequence[ClientState]
) -> list[Upload]:
    """The values of clients that received the same table, all at once."""
    shards: list[Shard] = []
    touched: list[Touched] = []
    for down, state in zip(downs, states, strict=True):
        client.receive_keys(down, state)
        if not shards:
            client.load(client.model, down, state)
        shard = client._shard(client._trainee(down), down.tick.experience)
        shards.append(shard)
        touched.append(client.touched(shard, down))
    client.model.backbone.eval()
    before = client.head.values.detach()[torch.cat([t.numbers for t in touched])]
    values, losses = _descend(client, downs, states, shards, touched, before)
    sizes = [len(t.numbers) for t in touched]
    deltas = torch.split((values - before).cpu(), sizes)
    uploads = []
    for place, down in enumerate(downs):
        mine = touched[place]
        records: Records = {
            "rows": {
                "indices": mine.numbers,
                "deltas": deltas[place].clone(),
                "counts": mine.counts * client.training.epochs,
            }
        }
        uploads.append(
            Upload(
                client_id=client._trainee(down),
                num_examples=len(shards[place]),
                records=records,
                metrics={"loss": losses[place]},
            )
        )
    return uploads


def _descend(
    client: "DKVB",
    downs: Sequence[Download],
    states: Sequence[ClientState],
    shards: Sequence[Shard],
    touched: Sequence[Touched],
    start: Tensor,
) -> tuple[Tensor, list[float]]:
    """The rows of all clients after training, ``[m, v]``, and every client's mean loss."""
    lookup, count = client.head.lookup, len(downs)
    seed, device = client.setting.seed, start.device
    sizes = torch.tensor([len(t.numbers) for t in touched])
    owners = torch.arange(count).repeat_interleave(sizes).to(device)  # of every row
    begins = (sizes.cumsum(0) - sizes).tolist()
    batches = []
    for place, (shard, down, state) in enumerate(zip(shards, downs, states, strict=True)):
        rows = touched[place].places + begins[place]
        looked_up = Shard(
            inputs=rows, targets=shard.targets, tasks=shard.tasks, indices=shard.indices
        )
        rng = generator(seed, "train", down.tick.round, client._trainee(down))
        batches.append(Client.batches(client, looked_up, down, state, rng))
    values = nn.Parameter(start.clone())
    rate = client.rate(downs[0])
    sums, examples = torch.zeros(count, device=device), torch.zeros(count, device=device)
    while drawn := {p: b for p, it in enumerate(batches) if (b := next(it, None)) is not None}:
        lengths = torch.tensor([len(batch.targets) for batch in drawn.values()], device=device)
        whose = torch.tensor(list(drawn), device=device).repeat_interleave(lengths)
        inputs = torch.cat([batch.inputs for batch in drawn.values()]).to(device)
        targets = torch.cat([batch.targets for batch in drawn.values()]).to(device)
        values.grad = None
        logits = vote(values, inputs, lookup.codebooks, tokens=lookup.tokens)
        each = functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=client.label_smoothing
        )
        taken = torch.bincount(whose, minlength=count)
        losses = torch.zeros(count, device=device).index_add(0, whose, each)
        (losses / taken.clamp(min=1)).sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            gradient = _clipped(values.grad, owners, count, client.training.clip_norm)  # type: ignore[arg-type]
            values.add_(gradient, alpha=-rate)
        sums += losses.detach()
        examples += taken
    return values.detach(), (sums / examples).tolist()


def _clipped(gradient: Tensor, owners: Tensor, count: int, largest: float | None) -> Tensor:
    """The gradient with every client's part scaled to a norm of at most ``largest``."""
    if largest is None:
        return gradient
    squares = torch.zeros(count, device=gradient.device)
    squares.index_add_(0, owners, gradient.square().sum(1))
    factors = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    return gradient * factors[owners].unsqueeze(1)
