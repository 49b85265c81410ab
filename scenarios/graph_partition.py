"""How the nodes of a graph are dealt to clients; a client keeps the links inside its part."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from fedsim.data import Indices
from fedsim.seeding import derive, numpy_generator
from scenarios.graph_data import GraphDataset
from scenarios.graph_metis import metis, neighbor_lists
from scenarios.holdings import dirichlet, raise_to_minimum

CLIENTS_PER_COMMUNITY = 5


class GraphPartition(ABC):
    """Gives every client its nodes."""

    @abstractmethod
    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """Nodes of every client, ascending; one array per client.

        Args:
            dataset: The graph.
            num_clients: Number of clients ``C``.

        Raises:
            ValueError: If the graph cannot be cut into so many parts.
        """

    def draw(self, num_clients: int) -> int:
        """How many partitions are drawn before this one from the same stream of random numbers.

        The split into training, validation and test nodes is drawn from that stream too.
        """
        del num_clients
        return 0


class Metis(GraphPartition):
    """Disjoint parts of almost equal size with few links between them.

    Args:
        sequence: Numbers of clients whose partitions are drawn one after another from one stream,
            so that each has a split of its own; other numbers use the first split.
        use_recorded: Take the parts that METIS 5.1.0 gives where they are recorded (see
            :mod:`scenarios.graph_recorded`); else those of the METIS inside pymetis, always.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206
        (non-overlapping); Karypis and Kumar, METIS, SIAM J. Sci. Comput. 1998.
    """

    def __init__(self, *, sequence: Sequence[int] = (5, 10, 20), use_recorded: bool = True) -> None:
        self._sequence = tuple(sequence)
        self._use_recorded = use_recorded

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        _require(dataset, num_clients)
        return _grouped(metis(dataset.data, num_clients, self._use_recorded), num_clients)

    def draw(self, num_clients: int) -> int:
        """See :meth:`GraphPartition.draw`."""
        return _position(self._sequence, num_clients)


class OverlappingMetis(GraphPartition):
    """Communities by METIS; the five clients of each draw half of its nodes, independently.

    The clients of one community share about half of their nodes, those of different communities
    none. Every client keeps the links among its own nodes.

    Args:
        sequence: See :class:`Metis`. The draws of the earlier entries are repeated to bring the
            stream of random numbers to where the partition begins.
        seed: Seed of the stream.
        use_recorded: See :class:`Metis`.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206
        (overlapping).
    """

    def __init__(
        self,
        *,
        sequence: Sequence[int] = (10, 30, 50),
        seed: int = 1234,
        use_recorded: bool = True,
    ) -> None:
        self._sequence = tuple(sequence)
        self._seed = seed
        self._use_recorded = use_recorded

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        rng = random.Random(self._seed)
        for earlier in self._sequence[: self.draw(num_clients)]:
            self._sample(dataset, earlier, rng)
        return self._sample(dataset, num_clients, rng)

    def draw(self, num_clients: int) -> int:
        """See :meth:`GraphPartition.draw`."""
        return _position(self._sequence, num_clients)

    def _sample(self, dataset: GraphDataset, num_clients: int, rng: random.Random) -> list[Indices]:
        communities, rest = divmod(num_clients, CLIENTS_PER_COMMUNITY)
        if rest or communities < 1:
            raise ValueError(
                f"partition=metis_overlapping makes {CLIENTS_PER_COMMUNITY} clients of each"
                f" community, so num_clients must be a multiple of it; got {num_clients}"
            )
        _require(dataset, 2 * communities)
        parts = _grouped(metis(dataset.data, communities, self._use_recorded), communities)
        return [
            np.sort(np.array(rng.sample(part.tolist(), len(part) // 2), np.int64))
            for part in parts
            for _ in range(CLIENTS_PER_COMMUNITY)
        ]


class Louvain(GraphPartition):
    """Communities of high modularity, brought to the number of clients.

    Too many communities are dealt whole, the largest first, each to the client with the fewest
    nodes so far; too few are cut, the largest first, into halves by METIS.

    Args:
        resolution: Above 1 finds more and smaller communities, below 1 fewer and larger ones.
        seed: Order in which the nodes are visited.

    Source:
        Blondel et al., Fast Unfolding of Communities in Large Networks, 2008, arXiv:0803.0476.
    """

    def __init__(self, *, resolution: float = 1.0, seed: int = 1234) -> None:
        if resolution <= 0:
            raise ValueError(f"resolution must be positive, got {resolution}")
        self._resolution = resolution
        self._seed = seed

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        import networkx

        _require(dataset, num_clients)
        offsets, neighbors = neighbor_lists(dataset.data)
        graph = networkx.Graph()
        graph.add_nodes_from(range(len(offsets) - 1))
        sources = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        graph.add_edges_from(zip(sources.tolist(), neighbors.tolist(), strict=True))
        seed = derive(self._seed, "louvain") % 2**32
        found = networkx.community.louvain_communities(
            graph, resolution=self._resolution, seed=seed
        )
        communities = [np.array(sorted(nodes), np.int64) for nodes in found]
        return _deal(_cut(communities, dataset, num_clients), num_clients)


class RandomNodes(GraphPartition):
    """Every client gets a random sample of nodes; sizes differ by one at most, most links are lost.

    Args:
        seed: Draws the parts.
    """

    def __init__(self, *, seed: int = 1234) -> None:
        self._seed = seed

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        _require(dataset, num_clients)
        rng = numpy_generator(self._seed, "partition")
        owners = rng.permutation(np.arange(len(dataset.data.y)) % num_clients)
        return _grouped(owners, num_clients)


class DirichletNodes(GraphPartition):
    """Label skew: each class is split over the clients in proportions drawn from a Dirichlet.

    Args:
        alpha: Concentration; ``0.1`` is a strong skew, ``100`` nearly IID.
        min_nodes: Fewest nodes of a client; those below get nodes of the largest clients.
        seed: Draws the parts.

    Raises:
        ValueError: If ``alpha`` or ``min_nodes`` is not positive.

    Source:
        Hsu et al., Measuring the Effects of Non-Identical Data Distribution, arXiv:1909.06335.
    """

    def __init__(self, *, alpha: float, min_nodes: int = 10, seed: int = 1234) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if min_nodes < 1:
            raise ValueError(f"min_nodes must be at least 1, got {min_nodes}")
        self._alpha = alpha
        self._min_nodes = min_nodes
        self._seed = seed

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        _require(dataset, num_clients, self._min_nodes)
        rng = numpy_generator(self._seed, "partition")
        targets = dataset.data.y.numpy()
        owners = np.empty(len(targets), np.int64)
        for label in range(dataset.num_classes):
            nodes = rng.permutation(np.flatnonzero(targets == label))
            edges = np.cumsum(dirichlet(rng, self._alpha, num_clients))
            places = (np.arange(len(nodes)) + 0.5) / max(len(nodes), 1) * edges[-1]
            owners[nodes] = np.searchsorted(edges, places)
        owners = raise_to_minimum(owners, num_clients, self._min_nodes, rng)
        return _grouped(owners, num_clients)


class NaturalGraphs(GraphPartition):
    """The data set's own graphs (countries, for example): client ``i`` holds graph ``i``.

    With fewer clients than graphs, client ``i`` holds the graphs ``i``, ``i + C``, and so on.
    """

    def members(self, dataset: GraphDataset, num_clients: int) -> list[Indices]:
        """See :meth:`GraphPartition.members`."""
        _require(dataset, num_clients)
        if dataset.groups is None:
            raise ValueError(
                f"partition=graph_natural needs a data set of several graphs, and {dataset.name}"
                " is a single one; use dataset=twitch, or another partition"
            )
        groups = dataset.groups.numpy()
        num_groups = int(groups.max()) + 1
        if num_groups < num_clients:
            raise ValueError(
                f"num_clients={num_clients} is more than the {num_groups} graphs of"
                f" {dataset.name}; use num_clients={num_groups} or fewer, or another partition"
            )
        return _grouped(groups % num_clients, num_clients)


def _position(sequence: tuple[int, ...], num_clients: int) -> int:
    return sequence.index(num_clients) if num_clients in sequence else 0


def _grouped(owners: Indices, num_clients: int) -> list[Indices]:
    """Nodes of every client, given the client of every node."""
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=num_clients))
    return [part.astype(np.int64) for part in np.split(order, ends[:-1])]


def _cut(communities: list[Indices], dataset: GraphDataset, wanted: int) -> list[Indices]:
    """Halve the largest community until there are enough."""
    while len(communities) < wanted:
        communities.sort(key=len)
        largest = communities.pop()
        halves = _grouped(metis(dataset.data, 2, use_recorded=False, nodes=largest), 2)
        communities += [largest[half] for half in halves]
    return communities


def _deal(communities: list[Indices], num_clients: int) -> list[Indices]:
    """Deal whole communities, the largest first, to the client with the fewest nodes."""
    parts: list[list[Indices]] = [[] for _ in range(num_clients)]
    sizes = [0] * num_clients
    for community in sorted(communities, key=lambda nodes: (-len(nodes), int(nodes[0]))):
        client = sizes.index(min(sizes))
        parts[client].append(community)
        sizes[client] += len(community)
    return [np.sort(np.concatenate(part)) for part in parts]


def _require(dataset: GraphDataset, num_clients: int, nodes_per_client: int = 1) -> None:
    """Raise where the nodes do not suffice."""
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")
    needed, available = num_clients * nodes_per_client, len(dataset.data.y)
    if needed > available:
        raise ValueError(
            f"num_clients={num_clients} with {nodes_per_client} or more nodes each needs {needed},"
            f" and {dataset.name} has {available}; use fewer clients"
        )
