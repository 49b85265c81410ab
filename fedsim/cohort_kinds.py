"""Which clients can be trained at once: what rules a configuration out, and who goes together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import optim

from fedsim.clock import Tick
from fedsim.cohort_views import is_same
from fedsim.state import ClientState
from fedsim.wire import Download

if TYPE_CHECKING:  # it is imported by the module that runs clients, which knows them already
    from fedsim.client import Client

# optimisers that treat every element alike, so that a step on stacked tensors is everybody's step
ELEMENTWISE = (
    optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad, optim.RMSprop, optim.Adadelta, optim.Adamax,
    optim.NAdam, optim.RAdam,
)  # fmt: skip
COURSE = ("train", "fit", "on_device", "_optimizer", "_shard", "_cross_boundary")


def objection(client: "Client", *, graphs: bool) -> str | None:
    """Why a client's configuration rules blocks out, or None.

    Args:
        client: Serves all clients.
        graphs: Whether they hold graphs, whose blocks are tested and keep moments as well.
    """
    overridden = [name for name in COURSE if client.overrides(name)]
    if overridden:
        return f"it overrides {', '.join(overridden)}"
    if client.setting.evaluation.in_training and not graphs:
        return "clients are tested in training (evaluation.when=after_training)"
    if client.scenario.evaluation_points:
        return "clients are tested before the merge (scenario.evaluation_points)"
    if client.training.keep_optimizer and not graphs:
        return "the optimiser's moments stay with the client (training.keep_optimizer)"
    probe = client.training.optimizer([torch.nn.Parameter(torch.zeros(1))])
    if type(probe) not in ELEMENTWISE:
        return f"{type(probe).__name__} is not known to treat every element alike"
    return None


class Kind(NamedTuple):
    """What the clients of a block have in common.

    Attributes:
        tick: The time.
        config: What they are told.
        names: Of records, groups of the state and scalars.
        steps: How many their optimisers have taken, where moments stay with them.
    """

    tick: Tick
    config: frozenset[tuple[str, int | float | str | bool]]
    names: tuple[frozenset[str], ...]
    steps: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, down: Download, state: ClientState) -> "Kind":
        """The kind of a client that received and remembers this."""
        names = frozenset(down.records), frozenset(state), frozenset(down.config)
        steps: tuple[tuple[str, float], ...] = ()
        if "optimizer" in state:
            moments = state["optimizer"].items()
            steps = tuple((name, float(value)) for name, value in moments if value.dim() == 0)
        return cls(down.tick, frozenset(down.config.items()), names, steps)


def alike(down: Download, other: Download) -> bool:
    """Whether two downloads were decoded from the same content, for clients of the same time."""
    same = down.records is other.records and down.config is other.config
    return same and down.tick == other.tick


def runs_of_alike(downs: Sequence[Download]) -> list[list[int]]:
    """Places of neighbours that received the very same tensors and words, at the same time."""
    runs: list[list[int]] = []
    for place, down in enumerate(downs):
        if runs and _is_same(down, downs[runs[-1][0]]):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _is_same(down: Download, other: Download) -> bool:
    return alike(down, other) or (
        (down.tick, down.config) == (other.tick, other.config)
        and down.records.keys() == other.records.keys()
        and all(is_same(params, other.records[name]) for name, params in down.records.items())
    )
