"""Clustered federated learning on graphs: clients that pull apart are averaged apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Form, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.functional.similarity import cosine_similarity
from fedsim.metrics import Weighting
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload
from strategies.mean import by_examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Clients that share a model.

    Attributes:
        clients: Who, ascending.
        params: Their model.
    """

    clients: tuple[int, ...]
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class GCFLState:
    """What the server holds.

    Attributes:
        initial: Model of clients that have not taken part yet.
        clusters: Everybody who has, in clusters.
        quiet: Smallest seen share of a cluster's mean update in its largest.
    """

    initial: Params
    clusters: tuple[Cluster, ...] = ()
    quiet: float = float("nan")

    def of(self, client_id: int) -> Cluster | None:
        """The client's cluster."""
        return next((c for c in self.clusters if client_id in c.clients), None)


class GCFL(Strategy[GCFLState]):
    """Averages inside clusters, which split in two where their members want different models.

    With ``d_i`` the update of client ``i``, a cluster splits in a round after ``warmup`` if its
    mean update is small, ``|mean d| < mean_below * max |d_i|``, while the largest is not,
    ``max |d_i| > largest_above``. The halves are the sides of the minimum cut of the graph of
    cosines between updates. Newcomers join the largest cluster.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        mean_below: Share of the largest norm that the mean's must stay below.
        largest_above: Norm that the largest update must exceed.
        warmup: Rounds in which no cluster splits.
        smallest: Clients that a cluster must have to be split, at least 2.
        weighting: ``examples`` weighs clients by their training examples, ``clients`` equally.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Xie et al., Federated Graph Classification over Non-IID Graphs, NeurIPS 2021,
        arXiv:2106.13423, after Sattler et al., arXiv:1910.01991. There the mean's norm is compared
        with an absolute number; here with the largest norm, which needs no tuning to the model's
        size. Cosines are shifted to ``[0, 1]``, as minimum cuts ask.
    """

    personal = True

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        mean_below: float = 0.5,
        largest_above: float = 0.0,
        warmup: int = 20,
        smallest: int = 3,
        weighting: Weighting = "clients",
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if mean_below < 0 or largest_above < 0 or warmup < 0 or smallest < 2:
            raise ValueError(
                "strategy.mean_below, largest_above and warmup must be 0 or more and smallest at"
                f" least 2, got {mean_below}, {largest_above}, {warmup} and {smallest}"
            )
        self._mean_below, self._largest_above = mean_below, largest_above
        self._warmup, self._smallest = warmup, smallest
        self._by_examples = by_examples(weighting)

    def init(self, params: Params) -> GCFLState:
        """See :meth:`Strategy.init`."""
        return GCFLState(initial=params)

    def payload(self, tick: Tick, state: GCFLState, client_id: int | None) -> Records:
        """The model of the client's cluster."""
        del tick
        cluster = None if client_id is None else state.of(client_id)
        return {"arrays": state.initial if cluster is None else cluster.params}

    def aggregate(self, tick: Tick, state: GCFLState, uploads: Iterable[Upload]) -> GCFLState:
        """Average inside clusters; split those that have come to a standstill but for tensions."""
        arrived = {upload.client_id: upload for upload in uploads}
        clusters: list[Cluster] = []
        quiet = []
        due = tick.round > self._warmup
        for cluster in _with_newcomers(state, sorted(arrived)):
            present = [c for c in cluster.clients if c in arrived]
            if not present:
                clusters.append(cluster)
                continue
            updates = torch.stack(
                [_update(arrived[c].records["arrays"], cluster.params) for c in present]
            )
            largest = float(updates.norm(dim=1).max())
            share = float(updates.mean(dim=0).norm()) / largest if largest > 0 else 1.0
            quiet.append(share)
            tense = share < self._mean_below and largest > self._largest_above
            parts = [cluster.clients]
            if due and tense and len(present) >= self._smallest:
                parts = _halves(cluster.clients, present, updates)
            clusters += [
                Cluster(clients=part, params=self._mean(part, arrived, cluster.params))
                for part in parts
            ]
        return replace(state, clusters=tuple(clusters), quiet=min(quiet, default=state.quiet))

    def expects(self, tick: Tick, state: GCFLState, upload: Upload) -> Sequence[Form]:
        """A model like the initial one."""
        del tick, upload
        return [Form(records={"arrays": fields_of(state.initial)})]

    def shared(self, state: GCFLState) -> Params:
        """The mean of the clusters' models, weighted by their clients."""
        if not state.clusters:
            return state.initial
        return weighted_mean((len(c.clients), c.params) for c in state.clusters)

    def measures(self, state: GCFLState) -> dict[str, float]:
        """How many clusters there are, and how near the next is to a split."""
        return {"clusters": float(len(state.clusters)), "mean_share": state.quiet}

    def _mean(self, clients: Sequence[int], arrived: Mapping[int, Upload], old: Params) -> Params:
        present = [arrived[c] for c in clients if c in arrived]
        if not present:
            return old
        return weighted_mean(
            (u.num_examples if self._by_examples else 1, u.records["arrays"]) for u in present
        )


def _with_newcomers(state: GCFLState, cohort: Sequence[int]) -> list[Cluster]:
    """The clusters, those who take part for the first time in the largest of them."""
    new = [client for client in cohort if state.of(client) is None]
    if not state.clusters:
        return [Cluster(clients=tuple(new), params=state.initial)]
    clusters = list(state.clusters)
    largest = max(range(len(clusters)), key=lambda i: len(clusters[i].clients))
    members = tuple(sorted([*clusters[largest].clients, *new]))
    clusters[largest] = replace(clusters[largest], clients=members)
    return clusters


def _update(params: Params, old: Params) -> Tensor:
    """What a client changed, in one vector."""
    return torch.cat([(params[name] - old[name]).float().reshape(-1) for name in old])


def _halves(
    members: Sequence[int], present: Sequence[int], updates: Tensor
) -> list[tuple[int, ...]]:
    """The two sides of the minimum cut; absent members go to the larger side."""
    import networkx

    likeness = ((1.0 + cosine_similarity(updates)) / 2.0).tolist()
    graph = networkx.Graph()
    for i, first in enumerate(present):
        for j in range(i + 1, len(present)):
            graph.add_edge(first, present[j], weight=likeness[i][j])
    _, (left, right) = networkx.stoer_wagner(graph)
    sides = sorted([set(left), set(right)], key=lambda side: (len(side), min(side)))
    sides[1] |= set(members) - set(present)
    return [tuple(sorted(side)) for side in sides]
