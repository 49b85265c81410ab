"""Tests of a block of clients at once: one forward pass over the examples of all of them.

Where the model is the same for all clients, many small tests are one larger test, whose marks are
added up client by client. That holds for every client whose ``load`` and ``predict`` give the same
for all of them; a client whose model is its own is tested alone. Clients that hold graphs may all
have models of their own, see :mod:`fedsim.cohort_graph_evaluation`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.arrays import Records
from fedsim.backbones.graph_base import GraphBackbone
from fedsim.cohort_kinds import runs_of_alike
from fedsim.cohort_plan import GRAPH_VALUES, MAX_BLOCK, CohortSize
from fedsim.cohort_views import BlockDownload, BlockState, Unequal, UnstackableError, is_same
from fedsim.data import Batch
from fedsim.scenario import Split
from fedsim.scoring import Score, measured
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

if TYPE_CHECKING:  # it is imported by the module that runs clients, which knows them already
    from fedsim.client import Client
    from fedsim.cohort_graph_evaluation import GraphEvaluation

COURSE = ("evaluate", "measure", "_scores", "score", "on_device")
EXAMPLES = 512  # of a forward pass, at least; twice as many leave a CPU's cache
_ROUNDING = 1e-3  # relative difference of a mean loss that rounding may explain
_LOG = logging.getLogger(__name__)


class CohortEvaluation:
    """Tests several clients of a process at once where their models are the same.

    A client is declined, once and for all, if it overrides the course of the tests, or if what it
    loads or predicts turns out to depend on which client it is. The first block is checked against
    a client that is tested alone.

    Args:
        client: Serves all clients.
        size: Clients a block at most; ``auto`` is as many as help, ``off`` is one.
    """

    def __init__(self, client: "Client", size: CohortSize) -> None:
        self.client = client
        self.reason: str | None = None  # why clients are tested one by one
        self._wanted = size
        self._is_checked = False
        self._holds_graphs = isinstance(getattr(client.model, "backbone", None), GraphBackbone)
        self._graphs: GraphEvaluation | None = None
        overridden = [name for name in COURSE if client.overrides(name)]
        if overridden:
            self.decline(f"it overrides {', '.join(overridden)}")

    def size(self, down: Download, state: ClientState) -> int:
        """Clients a block at most; one if the client is declined."""
        del state  # every test is worth it
        if self.reason is not None or self._wanted == "off":
            return 1
        if isinstance(self._wanted, int):
            return self._wanted
        if not self._holds_graphs or down.client_id is None:
            return MAX_BLOCK
        try:
            values = self._of_graphs().values(down.client_id)
        except UnstackableError as error:
            self.decline(str(error))
            return 1
        return max(1, min(MAX_BLOCK, GRAPH_VALUES // values))

    def decline(self, reason: str) -> None:
        """Test one by one from now on."""
        if self.reason is None:
            self.reason = reason
            name = type(self.client).__name__
            _LOG.debug("%s: clients are tested one by one, since %s", name, reason)

    def run(
        self,
        downs: Sequence[Download],
        states: Sequence[ClientState],
        spare: Callable[[int], ClientState],
    ) -> list[Upload]:
        """The tests of each client, in the order of the downloads.

        Args:
            downs: What each received.
            states: What each remembers.
            spare: A fresh copy of the state that a client came with, by its place in ``states``.

        Raises:
            UnstackableError: If the clients cannot be tested at once.
        """
        uploads: list[Upload] = []
        everyone = list(range(len(downs)))
        for places in [everyone] if self._holds_graphs else runs_of_alike(downs):
            if len(places) == 1:
                uploads.append(self.client.evaluate(downs[places[0]], states[places[0]]))
                continue
            tested = self._tested([downs[p] for p in places], [states[p] for p in places])
            if not self._is_checked:
                alone = self.client.evaluate(downs[places[0]], spare(places[0]))
                _check(tested[0], alone)
                self._is_checked = True
            uploads += tested
        return uploads

    def _tested(self, downs: Sequence[Download], states: Sequence[ClientState]) -> list[Upload]:
        if self._holds_graphs:
            return self._of_graphs().run(downs, states)
        return _tested(self.client, downs, states)

    def _of_graphs(self) -> "GraphEvaluation":
        from fedsim.cohort_graph_evaluation import GraphEvaluation  # it loads torch_geometric

        self._graphs = self._graphs or GraphEvaluation(self.client)
        return self._graphs


@torch.no_grad()
def _tested(
    client: "Client", downs: Sequence[Download], states: Sequence[ClientState]
) -> list[Upload]:
    """What :meth:`fedsim.client.Client.evaluate` says of every client of a block."""
    down = BlockDownload(downs[0].tick, downs[0].records, downs[0].config)
    state = BlockState(_common(states), states)
    client.load(client.model, down, state)
    client.model.eval()
    ids = [-1 if d.client_id is None else d.client_id for d in downs]
    splits: list[Split] = ["test"]
    if client.setting.evaluation.validates:
        splits.append("val")
    scores: dict[Split, list[list[Score]]] = {}  # of every client in every experience
    sizes: dict[Split, list[list[int]]] = {}
    for split in splits:
        parts = [
            _scores(client, ids, experience, split, down, state)
            for experience in range(client.scenario.num_experiences)
        ]
        scores[split] = [list(row) for row in zip(*(found for found, _ in parts), strict=True)]
        sizes[split] = [list(row) for row in zip(*(counts for _, counts in parts), strict=True)]
    uploads = []
    for place, client_id in enumerate(ids):
        metrics = measured({s: (scores[s][place], sizes[s][place]) for s in splits})
        count = sum(sizes["test"][place])
        uploads.append(
            Upload(client_id=client_id, num_examples=float(count), records={}, metrics=metrics)
        )
    return uploads


def _scores(
    client: "Client",
    ids: Sequence[int],
    experience: int,
    split: Split,
    down: Download,
    state: ClientState,
) -> tuple[list[Score], list[int]]:
    """Every client's score and number of examples in an experience."""
    scenario = client.scenario
    scenario.prefetch(ids, experience, split)
    shards = [scenario.shard(client_id, experience, split) for client_id in ids]
    if any(not isinstance(shard.inputs, Tensor) for shard in shards):
        raise UnstackableError("the inputs are no plain tensors")
    batches = (
        (place, batch) for place, shard in enumerate(shards) for batch in shard.batches(EXAMPLES)
    )
    sums = torch.zeros(len(ids), 5, dtype=torch.float64)
    for owners, stored in _joined(batches):
        batch = client.on_device(stored)
        predicted = client.predict(client.model, batch, down, state)
        marks = client.candidates.marks(predicted, batch.targets, experience)
        sums.index_add_(0, owners, torch.stack([m.double() for m in marks], dim=1).cpu())
    return [Score.of(row) for row in sums.tolist()], [len(shard) for shard in shards]


def _joined(batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[Tensor, Batch]]:
    """Batches put together until they are large; with whose every example is, ``[n]``."""
    held: list[tuple[int, Batch]] = []
    count = 0
    for place, batch in batches:
        held.append((place, batch))
        count += len(batch.targets)
        if count >= EXAMPLES:
            yield _one(held)
            held, count = [], 0
    if held:
        yield _one(held)


def _one(held: Sequence[tuple[int, Batch]]) -> tuple[Tensor, Batch]:
    places = torch.tensor([place for place, _ in held])
    sizes = torch.tensor([len(batch.targets) for _, batch in held])
    tasks = [batch.tasks for _, batch in held if batch.tasks is not None]
    if tasks and len(tasks) < len(held):
        raise UnstackableError("some examples have task labels and some have none")
    whole = Batch(
        torch.cat([batch.inputs for _, batch in held]),
        torch.cat([batch.targets for _, batch in held]),
        torch.cat(tasks) if tasks else None,
    )
    return places.repeat_interleave(sizes), whole


def _common(states: Sequence[ClientState]) -> Records:
    """What the states have in common; the rest cannot be read."""
    names = dict.fromkeys(name for state in states for name in state)
    groups: Records = {}
    for name in names:
        first = states[0].get(name)
        same = first is not None and all(name in s and is_same(s[name], first) for s in states)
        groups[name] = first if same and first is not None else Unequal(name)
    return groups


def _check(tested: Upload, alone: Upload) -> None:
    """Raise UnstackableError unless a client of a block does as well as it does alone."""
    if tested.metrics.keys() != alone.metrics.keys():
        raise UnstackableError("a block and a client alone measure different things")
    for name, values in alone.metrics.items():
        ours = tested.metrics[name]
        for a, b, count in zip(ours, values, alone.metrics["examples"], strict=True):  # type: ignore[arg-type]
            # rounding may change the mean loss a little, and decide a tie between two classes
            room = (
                _ROUNDING * max(1.0, abs(b)) if name == "loss" else _ROUNDING + 1.0 / max(count, 1)
            )
            if math.isnan(a) != math.isnan(b) or abs(a - b) > room:
                raise UnstackableError(
                    f"a block and a client alone disagree on {name!r}: {a:.6g} and {b:.6g}"
                )
