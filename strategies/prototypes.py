"""A table of class prototypes that grows by exact, order-free sums."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Field, Form, class_sums
from fedsim.functional.prototypes import Statistics, merge
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload

EVERYTHING = -1  # a round before all rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the server knows of every class that anybody has met.

    Attributes:
        classes: Class ids, ascending, int64 ``[k]``.
        sums: Sums of embeddings, float64 ``[k, d]``.
        counts: Numbers of embeddings, int64 ``[k]``.
        changed: Round in which every row changed last, int64 ``[k]``.
        outer: Sum of outer products, float64 ``[d, d]``, or None where nobody sends them.
        missions: Positions of the merged missions of every client.
        synced: Round up to whose end every client knows the table.
        refused: Uploads refused because their mission had been merged.
    """

    classes: Tensor
    sums: Tensor
    counts: Tensor
    changed: Tensor
    outer: Tensor | None = None
    missions: dict[int, tuple[int, ...]] = field(default_factory=dict)
    synced: dict[int, int] = field(default_factory=dict)
    refused: int = 0


class Prototypes(Strategy[Table]):
    """Adds the statistics of every mission once and sends the rows that changed.

    ``S_c += sum_i S_ic``, ``N_c += sum_i N_ic``, prototype ``S_c / N_c``: the mean over all
    examples that any client has seen, whatever the partition and the order. A mission is known by
    its client and position and merged once. A client is sent the rows that changed after the
    round whose table it is known to have, which is the one before its newest upload. The model
    itself is never sent.

    Args:
        sampler: Draws the clients that go on a mission.
        evaluation_sampler: Draws the clients that evaluate.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150.
    """

    def __init__(self, *, sampler: Sampler, evaluation_sampler: Sampler) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        self._sent: tuple[Table | None, dict[int, Params]] = None, {}
        self._positions: dict[int, Params] = {}
        self._forms: tuple[int | str | None, list[Form]] = None, []  # by the table's width

    def init(self, params: Params) -> Table:
        """An empty table; the model stays where it is."""
        del params
        none = torch.empty(0, dtype=torch.int64)
        return Table(
            classes=none, sums=torch.empty(0, 0, dtype=torch.float64), counts=none, changed=none
        )

    def payload(self, tick: Tick, state: Table, client_id: int | None) -> Records:
        """Record ``prototypes``: ``classes`` ``[m]``, ``means`` ``[m, d]``, ``counts`` ``[m]``.

        ``merged`` tells a client the position of its newest mission that was merged; ``moments``
        holds the sum of outer products where clients send theirs.
        """
        del tick
        if self._sent[0] is not state:
            self._sent = state, {}
        memo = self._sent[1]
        since = EVERYTHING if client_id is None else state.synced.get(client_id, EVERYTHING)
        if since not in memo:
            memo[since] = _rows(state, since)
        records: Records = {"prototypes": memo[since]}
        if client_id is not None and client_id in state.missions:
            newest = max(state.missions[client_id])
            if newest not in self._positions:
                self._positions[newest] = {"position": torch.tensor(newest)}
            records["merged"] = self._positions[newest]
        if state.outer is not None:
            moments = memo.setdefault(EVERYTHING - 1, {"outer": state.outer.float()})
            records["moments"] = moments
        return records

    def aggregate(self, tick: Tick, state: Table, uploads: Iterable[Upload]) -> Table:
        """The table with every mission that was not merged before."""
        missions = dict(state.missions)
        synced, refused, outer = dict(state.synced), state.refused, state.outer
        parts: list[Statistics] = []
        for upload in uploads:
            record, client = upload.records["statistics"], upload.client_id
            synced[client] = tick.round - 1
            mission = int(record["mission"])
            known = missions.get(client, ())
            if mission in known:
                refused += 1
                continue
            missions[client] = (*known, mission)
            parts.append(Statistics(record["classes"], record["sums"], record["counts"]))
            if "moments" in upload.records:
                added = upload.records["moments"]["outer"].double()
                outer = added if outer is None else outer + added
        state = replace(state, missions=missions, synced=synced, refused=refused, outer=outer)
        return _merged(state, parts, tick.round) if parts else state

    def expects(self, tick: Tick, state: Table, upload: Upload) -> Sequence[Form]:
        """Sums of embeddings as wide as the table is, and the position of the mission."""
        del tick, upload
        width = state.sums.shape[1] if len(state.classes) else "D"
        if self._forms[0] != width:
            clock, _ = self._bound()
            mission = Field(int, (), low=0, high=clock.num_experiences - 1)
            form = Form(
                records={
                    "statistics": {**class_sums(width, self.num_classes), "mission": mission},
                    "moments": {"outer": Field(float, (width, width))},
                },
                optional=frozenset({"moments"}),
            )
            self._forms = width, [form]
        return self._forms[1]

    def shared(self, state: Table) -> Params:
        """The whole table, in double precision."""
        return {"classes": state.classes, "sums": state.sums, "counts": state.counts}

    def measures(self, state: Table) -> dict[str, float]:
        """How many classes are known, and how many uploads were refused."""
        return {"known_classes": len(state.classes), "refused_missions": state.refused}


def _merged(state: Table, parts: list[Statistics], round_: int) -> Table:
    new = merge(parts)
    if len(state.classes) == 0:
        changed = torch.full_like(new.classes, round_)
        return replace(
            state, classes=new.classes, sums=new.sums, counts=new.counts, changed=changed
        )
    both = merge([Statistics(state.classes, state.sums, state.counts), new])
    changed = torch.full_like(both.classes, round_)
    changed[torch.searchsorted(both.classes, state.classes)] = state.changed
    changed[torch.searchsorted(both.classes, new.classes)] = round_
    return replace(state, classes=both.classes, sums=both.sums, counts=both.counts, changed=changed)


def _rows(state: Table, since: int) -> Params:
    """The rows that changed after a round."""
    rows = state.changed > since
    counts = state.counts[rows]
    return {
        "classes": state.classes[rows],
        "means": (state.sums[rows] / counts.unsqueeze(1)).float(),
        "counts": counts.to(torch.int32),
    }
