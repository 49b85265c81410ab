"""FedGNN's server: averages models, passes on embeddings of nodes with common neighbours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Field, Form, fields_of
from fedsim.functional.neighbour_matching import Holdings, Matches, matches
from fedsim.functional.params import weighted_mean
from fedsim.metrics import Weighting
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Config, Upload
from strategies.mean import by_examples


@dataclass(frozen=True, slots=True, kw_only=True)
class FedGNNState:
    """What the server holds.

    Attributes:
        arrays: The global model.
        holdings: What every client that took part said of its links.
        matches: Every such client's foreign neighbours; ``clients`` are client ids.
        wanted: The nodes of every such client that others have as neighbours, ascending.
        embeddings: What was sent of these nodes: ``rows`` and ``values``.
    """

    arrays: Params
    holdings: Mapping[int, Holdings] = field(default_factory=dict)
    matches: Mapping[int, Matches] = field(default_factory=dict)
    wanted: Mapping[int, Tensor] = field(default_factory=dict)
    embeddings: Mapping[int, Params] = field(default_factory=dict)


class FedGNN(Strategy[FedGNNState]):
    """Federated averaging where nodes of different clients become neighbours by common neighbours.

    In its first round a client says, under pseudonyms, whom its nodes are linked to. The server
    finds nodes of different clients with common neighbours, asks their holders for their
    embeddings in every round, and passes them on with the model, one round old.

    Records down: ``arrays``; ``wanted`` (``rows`` whose embeddings to send) to clients whose links
    are known; ``neighbours`` (``embeddings`` ``[k, d]`` and links from ``rows`` to ``sources``).
    Records up: ``arrays``, and ``holdings`` in the first round, ``embeddings`` afterwards. The
    server thus sees who shares which neighbours, and embeddings of single nodes.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        at_least: Common neighbours that make two nodes neighbours, 1 or more.
        limit: Foreign neighbours of a node; 0 is federated averaging.
        weighting: ``examples`` weighs clients by their training examples, ``clients`` equally.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Wu et al., FedGNN: Federated Graph Neural Network for Privacy-Preserving Recommendation,
        2021, arXiv:2102.04925, adapted to subgraphs as Baek et al., ICML 2023, arXiv:2206.10206,
        describe it. FedGNN's noise on gradients and its pseudo items belong to recommendation and
        are left out, as there.
    """

    personal = True

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        at_least: int = 2,
        limit: int = 5,
        weighting: Weighting = "clients",
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if at_least < 1 or limit < 0:
            raise ValueError(
                "strategy.at_least must be 1 or more and strategy.limit 0 or more, got"
                f" {at_least} and {limit}"
            )
        self._at_least, self._limit = at_least, limit
        self._by_examples = by_examples(weighting)

    def init(self, params: Params) -> FedGNNState:
        """See :meth:`Strategy.init`."""
        return FedGNNState(arrays=params)

    def config(self, tick: Tick) -> Config:
        """Asks clients for their links, and for embeddings once these are known."""
        del tick
        return {"matching": self._limit > 0}

    def payload(self, tick: Tick, state: FedGNNState, client_id: int | None) -> Records:
        """The model, what the server wants to know, and the foreign neighbours."""
        del tick
        records: Records = {"arrays": state.arrays}
        if client_id is None or client_id not in state.holdings:
            return records
        records["wanted"] = {"rows": state.wanted[client_id]}
        neighbours = _neighbours(state.matches[client_id], state.embeddings)
        return records if neighbours is None else {**records, "neighbours": neighbours}

    def expects(self, tick: Tick, state: FedGNNState, upload: Upload) -> Sequence[Form]:
        """The model, and links of clients that are new or embeddings of the others."""
        del tick
        records = {"arrays": fields_of(state.arrays)}
        if self._limit == 0:
            return [Form(records=records)]
        if upload.client_id in state.holdings:
            last = len(state.holdings[upload.client_id].own) - 1
            wanted = len(state.wanted[upload.client_id])
            records["embeddings"] = {
                "rows": Field(torch.int64, (wanted,), low=0, high=last),
                "values": Field(float, (wanted, "D")),
            }
            return [Form(records=records)]
        own = upload.records.get("holdings", {}).get("own", torch.empty(0))
        records["holdings"] = {
            "own": Field(torch.int64, ("m",)),
            "rows": Field(torch.int64, ("l",), low=0, high=own.numel() - 1),
            "neighbours": Field(torch.int64, ("l",)),
        }
        return [Form(records=records)]

    def aggregate(self, tick: Tick, state: FedGNNState, uploads: Iterable[Upload]) -> FedGNNState:
        """The mean of the models; new links are matched, new embeddings kept."""
        del tick
        holdings, embeddings = dict(state.holdings), dict(state.embeddings)

        def models() -> Iterable[tuple[float, Params]]:
            for upload in uploads:
                if "holdings" in upload.records:
                    holdings[upload.client_id] = Holdings(**upload.records["holdings"])
                if "embeddings" in upload.records:
                    embeddings[upload.client_id] = upload.records["embeddings"]
                yield upload.num_examples if self._by_examples else 1, upload.records["arrays"]

        arrays = weighted_mean(models())
        found, wanted = state.matches, state.wanted
        if holdings.keys() != state.holdings.keys():
            found = self._matched(holdings)
            wanted = _wanted(found)
        return FedGNNState(
            arrays=arrays, holdings=holdings, matches=found, wanted=wanted, embeddings=embeddings
        )

    def shared(self, state: FedGNNState) -> Params:
        """The global model."""
        return state.arrays

    def measures(self, state: FedGNNState) -> dict[str, float]:
        """How many foreign neighbours a node has on average."""
        nodes = sum(len(h.own) for h in state.holdings.values())
        links = sum(len(m.rows) for m in state.matches.values())
        return {"foreign_neighbours": links / nodes} if nodes else {}

    def _matched(self, holdings: Mapping[int, Holdings]) -> dict[int, Matches]:
        ids = sorted(holdings)
        found = matches([holdings[i] for i in ids], at_least=self._at_least, limit=self._limit)
        names = torch.tensor(ids)
        return {i: replace(m, clients=names[m.clients]) for i, m in zip(ids, found, strict=True)}


def _wanted(found: Mapping[int, Matches]) -> dict[int, Tensor]:
    """The nodes of every client that others have as neighbours."""
    everybody = list(found.values())
    clients = torch.cat([m.clients for m in everybody])
    rows = torch.cat([m.their_rows for m in everybody])
    return {client: torch.unique(rows[clients == client]) for client in found}


def _neighbours(found: Matches, embeddings: Mapping[int, Params]) -> Params | None:
    """Embeddings of a client's foreign neighbours and the links to them; None without any."""
    parts, rows, sources, number = [], [], [], 0
    for client in torch.unique(found.clients).tolist():
        if client not in embeddings:
            continue
        sent, here = embeddings[client], found.clients == client
        theirs = found.their_rows[here]
        places = torch.searchsorted(sent["rows"], theirs)
        known = places < len(sent["rows"])
        known[known.clone()] = sent["rows"][places[known]] == theirs[known]
        used, positions = torch.unique(places[known], return_inverse=True)
        parts.append(sent["values"][used])
        rows.append(found.rows[here][known])
        sources.append(positions + number)
        number += len(used)
    if number == 0:
        return None
    return {
        "embeddings": torch.cat(parts),
        "rows": torch.cat(rows),
        "sources": torch.cat(sources),
    }
