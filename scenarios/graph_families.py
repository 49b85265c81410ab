"""Small graphs whose class is how they are wired: rings, stars, trees, blocks and more."""

from collections.abc import Callable

import networkx as nx
import numpy as np
import torch

from fedsim.data import Dataset, TensorExamples
from fedsim.seeding import numpy_generator

FEATURES = 2  # of a node: 1, and the share of the other nodes that it is linked to
LEVELS = 6  # of every family, e.g. the number of hubs of a star
Wiring = Callable[[int, int, int], nx.Graph]  # nodes, level and seed to a graph


def _blocks(nodes: int, level: int, seed: int) -> nx.Graph:
    count = level + 2
    sizes = [nodes // count + (i < nodes % count) for i in range(count)]
    odds = np.full((count, count), 0.05) + 0.75 * np.eye(count)
    return nx.stochastic_block_model(sizes, odds.tolist(), seed=seed)


FAMILIES: dict[str, Wiring] = {
    "ring": lambda n, level, _: nx.circulant_graph(n, range(1, level + 2)),
    "star": lambda n, level, _: nx.complete_bipartite_graph(level + 1, n - level - 1),
    "tree": lambda n, level, _: nx.full_rary_tree(level + 1, n),
    "grid": lambda n, level, _: nx.grid_2d_graph(level + 2, n // (level + 2)),
    "blocks": _blocks,
    "random": lambda n, level, seed: nx.gnp_random_graph(n, 0.1 + 0.12 * level, seed=seed),
    "attached": lambda n, level, seed: nx.barabasi_albert_graph(n, level + 1, seed=seed),
    "small_world": lambda n, level, seed: nx.watts_strogatz_graph(
        n, 4, 0.05 + 0.15 * level, seed=seed
    ),
}


def graph_families(
    *,
    num_classes: int = 48,
    train_per_class: int = 30,
    test_per_class: int = 10,
    fewest_nodes: int = 18,
    most_nodes: int = 24,
    rewired: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Graphs of 8 families of wiring, each with up to 6 levels; family and level are the class.

    Class ``c`` is family ``order[c] % 8`` at level ``order[c] // 8``, in an order drawn from the
    seed. Every graph has its own size; some links are moved to a random place, and nodes come in
    random order. An example is a matrix ``[m, 2 + m]``, see
    :class:`fedsim.backbones.node_sets.MeanNodes`.

    Args:
        num_classes: Classes ``K``, at most 48.
        train_per_class: Training graphs of a class.
        test_per_class: Test graphs of a class.
        fewest_nodes: Of a graph, at least 18.
        most_nodes: Of a graph, ``m``.
        rewired: Share of the links that are moved, in ``[0, 1]``.
        seed: Of everything.

    Raises:
        ValueError: If a number is out of range.
    """
    limit = len(FAMILIES) * LEVELS
    if not 1 <= num_classes <= limit:
        raise ValueError(f"num_classes must lie in [1, {limit}], got {num_classes}")
    if min(train_per_class, test_per_class) < 1:
        raise ValueError(
            "train_per_class and test_per_class must be at least 1, got"
            f" {train_per_class} and {test_per_class}"
        )
    if not 18 <= fewest_nodes <= most_nodes:
        raise ValueError(
            "fewest_nodes must be at least 18 and at most most_nodes, got"
            f" {fewest_nodes} and {most_nodes}"
        )
    if not 0.0 <= rewired <= 1.0:
        raise ValueError(f"rewired must lie in [0, 1], got {rewired}")
    order = numpy_generator(seed, "graph classes").permutation(limit)[:num_classes]
    wirings = list(FAMILIES.values())

    def examples(split: str, per_class: int) -> TensorExamples:
        rng = numpy_generator(seed, "graphs", split)
        graphs = []
        for number in order.tolist():
            for _ in range(per_class):
                nodes = int(rng.integers(fewest_nodes, most_nodes + 1))
                wiring, level = wirings[number % len(wirings)], number // len(wirings)
                graph = wiring(nodes, level, int(rng.integers(2**31)))
                graphs.append(_matrix(_rewired(graph, rewired, rng), most_nodes, rng))
        targets = torch.arange(num_classes).repeat_interleave(per_class)
        return TensorExamples(inputs=torch.from_numpy(np.stack(graphs)), targets=targets)

    return Dataset(
        name="graph families",
        train=examples("train", train_per_class),
        test=examples("test", test_per_class),
        num_classes=num_classes,
        class_names=tuple(f"{list(FAMILIES)[n % len(wirings)]} {n // len(wirings)}" for n in order),
    )


def _rewired(graph: nx.Graph, share: float, rng: np.random.Generator) -> nx.Graph:
    """The graph with nodes numbered from 0 and some links moved to pairs that have none."""
    graph = nx.convert_node_labels_to_integers(graph)
    links = list(graph.edges)
    free = list(nx.non_edges(graph))
    count = min(round(share * len(links)), len(free))
    graph.remove_edges_from(links[i] for i in rng.permutation(len(links))[:count])
    graph.add_edges_from(free[i] for i in rng.permutation(len(free))[:count])
    return graph


def _matrix(graph: nx.Graph, most: int, rng: np.random.Generator) -> np.ndarray:
    """Features and adjacency, one row per node in random order, filled up with zeros."""
    count = len(graph)
    links = nx.to_numpy_array(graph, nodelist=rng.permutation(count).tolist(), dtype=np.float32)
    matrix = np.zeros((most, FEATURES + most), np.float32)
    matrix[:count, 0] = 1.0
    matrix[:count, 1] = links.sum(1) / (count - 1)
    matrix[:count, FEATURES : FEATURES + count] = links
    return matrix
