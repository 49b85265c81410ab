"""How a scenario deals data to clients and over time, as plain numbers that can be saved."""

import math
from collections import deque
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsim.clock import Clock
from fedsim.data import Indices
from fedsim.scenario import Scenario, Split

SHOWN_CLIENTS = 100  # more than that no picture can show
DRAWN_CLIENTS = 6
DRAWN_NODES = 150
Cut = dict[str, Any]
Counts = NDArray[np.int64]


@runtime_checkable
class GraphCut(Protocol):
    """A scenario that cuts a graph."""

    def report(self) -> Any:
        """A dataclass with ``clients``, ``edges`` and ``lost_edges``."""
        ...

    def graph(self, client_id: int) -> Any:
        """The client's subgraph, with ``edge_index`` and ``y``."""
        ...


def describe(scenario: Scenario, clock: Clock) -> Cut:
    """How the scenario is cut.

    Returns:
        ``num_clients``, ``num_experiences``, ``num_classes``; for the first clients, at most 100,
        ``labels`` (training examples of every class, ``[C, K]``), ``examples`` (in every
        experience, ``[C, E]``), ``test_examples`` (``[C]``) and ``timeline`` (lists of first
        round, last round and experience); ``experience_classes`` over all clients; and where the
        data is a graph ``graph`` and ``drawings``. The numbers of :func:`facts` are in ``facts``.
    """
    shown = range(min(scenario.num_clients, SHOWN_CLIENTS))
    held = [_held(scenario, c, "train") for c in shown]
    tested = [_held(scenario, c, "test") for c in shown]
    targets = scenario.targets("train").numpy()
    labels = np.stack([_count(targets, parts, scenario.num_classes) for parts in held])
    cut: Cut = {
        "num_clients": scenario.num_clients,
        "num_experiences": scenario.num_experiences,
        "num_classes": scenario.num_classes,
        "num_rounds": clock.num_rounds,
        "class_names": list(getattr(getattr(scenario, "dataset", None), "class_names", ())),
        "labels": labels.tolist(),
        "examples": [[len(part) for part in parts] for parts in held],
        "test_examples": [len(np.unique(np.concatenate(parts))) for parts in tested],
        "timeline": [timeline(scenario, clock, c) for c in shown],
        "experience_classes": [scenario.classes(e) for e in range(scenario.num_experiences)],
        "facts": facts(labels, [np.unique(np.concatenate(parts)) for parts in held]),
    }
    if isinstance(scenario, GraphCut) and scenario.num_clients <= SHOWN_CLIENTS:
        cut["graph"] = _finite(asdict(scenario.report()))
        drawn = range(min(scenario.num_clients, DRAWN_CLIENTS))
        cut["drawings"] = [drawing(scenario.graph(c)) for c in drawn]
    return cut


def facts(labels: Counts, held: list[Indices]) -> dict[str, float]:
    """Numbers that say how hard a cut is.

    Args:
        labels: Training examples of every class at every client, ``[C, K]``.
        held: Every client's training examples, each once.

    Returns:
        ``smallest_client`` and ``largest_client`` in examples; ``classes_per_client`` on average
        and ``fewest_classes``; ``label_skew``, the mean total variation distance
        ``1/2 sum_k |p_ck - p_k|`` between a client's labels and everybody's, in ``[0, 1]``;
        ``class_overlap``, the mean Jaccard index of two clients' sets of classes; and
        ``shared_examples``, the share of the examples that more than one client holds.
    """
    sizes = labels.sum(axis=1)
    present = labels > 0
    some = sizes > 0
    shares = labels[some] / sizes[some, None]
    pooled = labels.sum(axis=0) / max(labels.sum(), 1)
    everything = np.concatenate(held) if held else np.zeros(0, np.int64)
    _, copies = np.unique(everything, return_counts=True)
    return {
        "smallest_client": int(sizes.min()),
        "largest_client": int(sizes.max()),
        "classes_per_client": float(present.sum(axis=1).mean()),
        "fewest_classes": int(present.sum(axis=1).min()),
        "label_skew": float(np.abs(shares - pooled).sum(axis=1).mean() / 2) if some.any() else 0.0,
        "class_overlap": _class_overlap(present),
        "shared_examples": float((copies > 1).mean()) if len(copies) else 0.0,
    }


def timeline(scenario: Scenario, clock: Clock, client_id: int) -> list[list[int]]:
    """First round, last round and experience of every stretch of a client's time.

    Rounds before the client joins belong to none.
    """
    stretches = []
    begin = clock.joins(client_id)
    while begin <= clock.num_rounds:
        position = clock.at(begin, client_id).experience
        low, high = begin, clock.num_rounds  # the last round of this position lies between them
        while low < high:
            middle = (low + high + 1) // 2
            if clock.at(middle, client_id).experience == position:
                low = middle
            else:
                high = middle - 1
        if position >= 0:
            stretches.append([begin, low, scenario.experience_at(client_id, position)])
        begin = low + 1
    return stretches


def drawing(graph: Any) -> dict[str, list[Any]]:
    """A subgraph's nodes (their classes) and links, small enough to be drawn.

    Of a large one the nodes nearest to the one with most links are taken.
    """
    links = graph.edge_index.numpy()
    links = links[:, links[0] < links[1]]
    neighbors: dict[int, list[int]] = {}
    for a, b in links.T.tolist():
        neighbors.setdefault(a, []).append(b)
        neighbors.setdefault(b, []).append(a)
    order = sorted(range(len(graph.y)), key=lambda node: (-len(neighbors.get(node, ())), node))
    taken: dict[int, int] = {}
    for start in order:
        queue = deque([start])
        while queue and len(taken) < DRAWN_NODES:
            node = queue.popleft()
            if node not in taken:
                taken[node] = len(taken)
                queue.extend(neighbors.get(node, ()))
    kept = [[taken[a], taken[b]] for a, b in links.T.tolist() if a in taken and b in taken]
    return {"classes": graph.y.numpy()[list(taken)].tolist(), "links": kept}


def _held(scenario: Scenario, client_id: int, split: Split) -> list[Indices]:
    """The client's examples in every experience."""
    return [scenario.indices(client_id, e, split) for e in range(scenario.num_experiences)]


def _count(targets: NDArray[Any], parts: list[Indices], num_classes: int) -> Counts:
    """Examples of every class, each example once however often it comes back."""
    counts: Counts = np.bincount(
        targets[np.unique(np.concatenate(parts))], minlength=num_classes
    ).astype(np.int64)
    return counts


def _class_overlap(present: NDArray[np.bool_]) -> float:
    """Mean Jaccard index over pairs of clients; 1 for a single client."""
    sets = present.astype(np.int64)
    common = sets @ sets.T
    sizes = sets.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - common
    pairs = np.triu_indices(len(sets), k=1)
    if not len(pairs[0]):
        return 1.0
    return float((common[pairs] / np.maximum(union[pairs], 1)).mean())


def _finite(value: Any) -> Any:
    """The value with None for NaN, as JSON wants it."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
