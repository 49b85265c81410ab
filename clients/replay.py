"""Local training with a memory of earlier experiences."""

import copy
from collections.abc import Iterator

import numpy as np
import torch

from fedsim.arrays import Params
from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.model import Model
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class Replay(Client):
    """Joins remembered examples of earlier experiences to every batch.

    The memory holds where examples lie in the data set (index and experience), never the examples
    themselves, and is filled when an experience is over. Its places are shared equally by the
    classes the client has met, so old classes give up places to new ones; which examples stay is
    drawn from the seed.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        memory: Examples that a client remembers; ``0`` is :class:`clients.sgd.SGD`.
        replay_batch: Remembered examples joined to every batch.

    Source:
        Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, arXiv:1902.10486
        (experience replay; class-balanced memory as in GDumb, Prabhu et al., ECCV 2020).
    """

    def __init__(
        self, setting: Setting, *, training: LocalTraining, memory: int, replay_batch: int
    ) -> None:
        super().__init__(setting, training=training)
        if memory < 0 or replay_batch < 1:
            raise ValueError(
                "client.memory must be 0 or more and client.replay_batch 1 or more, got"
                f" {memory} and {replay_batch}"
            )
        self.memory = memory
        self.replay_batch = replay_batch

    def consolidate(self, model: Model, shard: Shard, down: Download, state: ClientState) -> None:
        """Make room for the experience that is over."""
        del model
        if self.memory == 0:
            return
        experience = self.scenario.experience_at(_client(down), state.count("position"))
        held = state.get("memory", _empty())
        new = torch.from_numpy(shard.indices)
        indices = torch.cat([held["indices"], new])
        experiences = torch.cat([held["experiences"], torch.full_like(new, experience)])
        targets = self.scenario.targets("train")[indices]
        rng = generator(self.setting.seed, "memory", down.tick.round, _client(down))
        keep = balanced(targets, self.memory, rng)
        state["memory"] = {"indices": indices[keep], "experiences": experiences[keep]}

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """Batches of the current experience, each with remembered examples appended.

        Of a graph, whose nodes cannot be cut from it, the remembered nodes become rows beside those
        of the experience.
        """
        if not isinstance(shard.inputs, torch.Tensor):
            yield from self._with_nodes(super().batches(shard, down, state, rng), state, rng)
            return
        memory = self._remembered(state)
        for batch in super().batches(shard, down, state, rng):
            if memory is None:
                yield batch
                continue
            count = min(self.replay_batch, len(memory.targets))
            pick = torch.randperm(len(memory.targets), generator=rng)[:count]
            yield Batch(
                torch.cat([batch.inputs, memory.inputs[pick]]),
                torch.cat([batch.targets, memory.targets[pick]]),
                _join(batch.tasks, memory.tasks, pick),
            )

    def _with_nodes(
        self, batches: Iterator[Batch], state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """The batches of a graph with remembered nodes among the rows."""
        for batch in batches:
            if "memory" not in state:
                yield batch
                continue
            held = state["memory"]
            count = min(self.replay_batch, len(held["indices"]))
            pick = torch.randperm(len(held["indices"]), generator=rng)[:count].sort().values
            yield _joined(batch, held["indices"][pick], held["experiences"][pick])

    def _remembered(self, state: ClientState) -> Batch | None:
        """The remembered examples, as they looked in their experience."""
        if "memory" not in state:
            return None
        held = state["memory"]
        shards = [
            self.scenario.build(
                np.sort(held["indices"][held["experiences"] == experience].numpy()),
                experience,
                "train",
            )
            for experience in torch.unique(held["experiences"]).tolist()
        ]
        tasks = [s.tasks for s in shards if s.tasks is not None]
        return Batch(
            torch.cat([s.inputs for s in shards]),
            torch.cat([s.targets for s in shards]),
            torch.cat(tasks) if tasks else None,
        )


def balanced(targets: torch.Tensor, room: int, rng: torch.Generator) -> torch.Tensor:
    """Which examples to keep so that every class has an equal share of the room.

    Classes are served in turn, one example each, until the room is full; a class with few
    examples leaves its share to the others.

    Args:
        targets: Class of every candidate, ``[n]``.
        room: Examples to keep.
        rng: Draws which examples of a class stay.

    Returns:
        Ascending positions, at most ``room`` of them.
    """
    order = torch.randperm(len(targets), generator=rng)
    shuffled = targets[order]
    turn = torch.empty_like(order)  # how many of its class come before each example
    for label in torch.unique(shuffled):
        same = (shuffled == label).nonzero().flatten()
        turn[same] = torch.arange(len(same))
    first = torch.argsort(turn, stable=True)[:room]
    return order[first].sort().values


def _joined(batch: Batch, nodes: torch.Tensor, experiences: torch.Tensor) -> Batch:
    """The batch of a graph with more nodes among its rows.

    Args:
        batch: Its inputs are a graph with node numbers ``n_id`` and the rows as ``mask``.
        nodes: Numbers of the further rows, ``[n]``.
        experiences: Which experience each belongs to, ``[n]``.
    """
    graph = copy.copy(batch.inputs)  # the stored shard keeps its rows
    old = torch.isin(graph.n_id, nodes) & ~graph.mask
    mask = graph.mask | old
    tasks = None
    if batch.tasks is not None:
        order = nodes.argsort()
        tasks = torch.zeros_like(graph.y)
        tasks[graph.mask] = batch.tasks
        tasks[old] = experiences[order][torch.searchsorted(nodes[order], graph.n_id[old])]
        tasks = tasks[mask]
    graph.mask = mask
    return Batch(graph, graph.y[mask], tasks)


def _client(down: Download) -> int:
    if down.client_id is None:
        raise ValueError("only clients have a memory; this download names none")
    return down.client_id


def _empty() -> Params:
    return {
        "indices": torch.empty(0, dtype=torch.int64),
        "experiences": torch.empty(0, dtype=torch.int64),
    }


def _join(
    tasks: torch.Tensor | None, remembered: torch.Tensor | None, pick: torch.Tensor
) -> torch.Tensor | None:
    if tasks is None or remembered is None:
        return None
    return torch.cat([tasks, remembered[pick]])
