"""A graph dealt to clients as subgraphs, each client's nodes arriving over time."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Indices, Shard
from fedsim.scenario import Scenario, Split
from fedsim.seeding import generator
from scenarios.base import require_experiences
from scenarios.graph_data import GraphDataset
from scenarios.graph_partition import GraphPartition
from scenarios.graph_proxy import block_graph
from scenarios.graph_report import GraphReport, describe
from scenarios.graph_shard import GraphShard, pooled, rows_of
from scenarios.graph_split import SPLITS, NodeSplit
from scenarios.graph_streams import GraphStream
from scenarios.order import Order

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario
    from torch_geometric.data import Data


class GraphScenario(Scenario):
    """Transductive node classification: every client has a subgraph with its own test nodes.

    A shard is a subgraph with a mask over its rows (:class:`scenarios.graph_shard.GraphShard`), so
    one epoch is one step. Besides ``train`` and ``test`` there is the split ``val``.

    Args:
        dataset: The graph.
        partition: Deals the nodes to clients.
        order: In which order a client meets the experiences.
        num_clients: Number of clients ``C``.
        num_experiences: Number of experiences ``E``.
        split: Which nodes are for training, validation and test.
        stream: When the nodes arrive.
        seed: Seed of the run; partition and split have seeds of their own.

    Raises:
        TypeError: If the data set or the partition is not one for graphs.
        ValueError: If a count is not positive, the graph cannot be cut in this way, or a client
            has no training nodes.
    """

    def __init__(
        self,
        *,
        dataset: GraphDataset,
        partition: GraphPartition,
        order: Order,
        num_clients: int,
        num_experiences: int,
        split: NodeSplit,
        stream: GraphStream,
        seed: int,
    ) -> None:
        super().__init__()
        require_experiences(num_experiences)
        _check_types(dataset, partition)
        self.dataset = dataset
        self.num_clients = num_clients
        self.num_experiences = num_experiences
        self.num_classes = dataset.num_classes
        self.input_shape = (int(dataset.data.x.shape[1]),)
        self.task_classes = stream.task_classes(dataset, num_experiences, seed)
        self._order = order
        self._stream = stream
        self._seed = seed
        self._members = partition.members(dataset, num_clients)
        self._roles = split.roles(dataset, partition.draw(num_clients)).numpy()
        self.has_validation = bool((self._roles == SPLITS.index("val")).any())
        self._graphs: dict[tuple[int, int], Data] = {}  # tensors shared by the splits' shards
        self._shards: dict[tuple[int | None, int, Split], GraphShard] = {}
        self._check_training_nodes()

    def nodes(self, client_id: int) -> Indices:
        """The client's nodes over all experiences, ascending."""
        if not 0 <= client_id < self.num_clients:
            raise ValueError(f"client_id must lie in [0, {self.num_clients}), got {client_id}")
        return self._members[client_id]

    def graph(self, client_id: int) -> "Data":
        """The client's whole subgraph.

        Returns:
            ``x``, ``edge_index``, ``y``, original node numbers ``n_id``, and the bool masks
            ``train_mask``, ``val_mask``, ``test_mask``, disjoint.
        """
        return self._visible(client_id, self.num_experiences)

    def references(self, client_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """Whom the client's nodes are linked to, nodes of other clients included.

        Only numbers of nodes: a client knows of a foreign node that there is a link, as a paper
        knows what it cites, and nothing else.

        Returns:
            The client's nodes, ascending ``[m]``; and of every link from one of them the position
            of that node and the number of the other, ``[L]`` each.
        """
        nodes = torch.from_numpy(self.nodes(client_id))
        source, target = self.dataset.data.edge_index
        leaving = torch.isin(source, nodes)
        return nodes, torch.searchsorted(nodes, source[leaving]), target[leaving]

    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """See :meth:`Scenario.indices`; nodes, several times where clients share them."""
        if not 0 <= experience < self.num_experiences:
            raise ValueError(
                f"experience must lie in [0, {self.num_experiences}), got {experience}"
            )
        if client_id is None:
            every = [self.indices(c, experience, split) for c in range(self.num_clients)]
            return np.sort(np.concatenate(every))
        nodes = self.nodes(client_id)
        arrived = self._arrivals(client_id) == experience
        chosen: Indices = nodes[arrived & (self._roles[nodes] == SPLITS.index(split))]
        return chosen

    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """The given nodes on the whole graph, links between clients included."""
        del split
        everything = self._induced(np.arange(len(self.dataset.data.y)))
        mask = torch.zeros(len(everything.y), dtype=torch.bool)
        mask[torch.from_numpy(indices)] = True
        return rows_of(everything, mask, self._task(experience))

    def shard(self, client_id: int | None, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.shard`; the pooled data is the disjoint union of the subgraphs."""
        key = (client_id, experience, split)
        if key not in self._shards:
            if client_id is None:
                clients = range(self.num_clients)
                self._shards[key] = pooled([self._shard(c, experience, split) for c in clients])
            else:
                self._shards[key] = self._shard(client_id, experience, split)
        return self._shards[key]

    def targets(self, split: Split) -> Tensor:
        """See :meth:`Scenario.targets`: all nodes, whatever the split."""
        del split
        y: Tensor = self.dataset.data.y
        return y

    def experience_at(self, client_id: int, position: int) -> int:
        """See :meth:`Scenario.experience_at`."""
        return self._order.experience_at(client_id, position, self.num_experiences, self._seed)

    def streams(self, client_id: int) -> "CLScenario":
        """See :meth:`Scenario.streams`; every experience is one item, the subgraph."""
        from scenarios.graph_avalanche import avalanche_scenario

        return avalanche_scenario(self, client_id)

    def report(self) -> GraphReport:
        """Sizes, cut links, label distribution and homophily of every client's subgraph."""
        return describe(self.dataset.data, self.num_classes, self._members, self._roles)

    def proxy(
        self,
        seed: int,
        *,
        num_blocks: int = 5,
        block_size: int = 100,
        p_in: float = 0.1,
        p_out: float = 0.0,
    ) -> "Data":
        """A random graph with the features' width, the same for everybody who knows the seed.

        See :func:`scenarios.graph_proxy.block_graph`.
        """
        return block_graph(
            self.input_shape[0],
            generator(seed, "proxy graph"),
            num_blocks=num_blocks,
            block_size=block_size,
            p_in=p_in,
            p_out=p_out,
        )

    def _shard(self, client_id: int, experience: int, split: Split) -> GraphShard:
        """One client's subgraph in an experience with the rows of a split."""
        seen = self.num_experiences
        if self._stream.visible == "seen":
            order = [self.experience_at(client_id, i) for i in range(self.num_experiences)]
            seen = order.index(experience) + 1
        graph = self._visible(client_id, seen)
        rows = self.indices(client_id, experience, split)
        mask = torch.from_numpy(np.isin(graph.n_id.numpy(), rows))
        return rows_of(graph, mask, self._task(experience))

    def _visible(self, client_id: int, seen: int) -> "Data":
        """The subgraph of the nodes that came in the client's first ``seen`` experiences."""
        if (client_id, seen) not in self._graphs:
            nodes = self.nodes(client_id)
            if seen < self.num_experiences:
                met = [self.experience_at(client_id, i) for i in range(seen)]
                nodes = nodes[np.isin(self._arrivals(client_id), met)]
            self._graphs[client_id, seen] = self._induced(nodes)
        return self._graphs[client_id, seen]

    def _induced(self, nodes: Indices) -> "Data":
        from torch_geometric.data import Data
        from torch_geometric.utils import subgraph

        whole, n_id = self.dataset.data, torch.from_numpy(nodes)
        links, _ = subgraph(n_id, whole.edge_index, relabel_nodes=True, num_nodes=len(whole.y))
        roles = torch.from_numpy(self._roles[nodes])
        masks = {f"{split}_mask": roles == i for i, split in enumerate(SPLITS)}
        return Data(x=whole.x[n_id], edge_index=links, y=whole.y[n_id], n_id=n_id, **masks)

    def _arrivals(self, client_id: int) -> Indices:
        return self._stream.arrivals(
            self.dataset, self.nodes(client_id), client_id, self.num_experiences, self._seed
        )

    def _task(self, experience: int) -> int | None:
        return experience if self.task_classes is not None else None

    def _check_training_nodes(self) -> None:
        """Check the stream too, so that an impossible one fails before the first round."""
        for client_id, nodes in enumerate(self._members):
            if not (self._roles[nodes] == SPLITS.index("train")).any():
                raise ValueError(
                    f"client {client_id} has {len(nodes)} nodes and none for training; use fewer"
                    " clients, another partition or a larger scenario.split.train"
                )
            self._arrivals(client_id)


def _check_types(dataset: GraphDataset, partition: GraphPartition) -> None:
    if not isinstance(dataset, GraphDataset):
        raise TypeError(
            f"graph scenarios need a graph, e.g. dataset=digits_graph; got a"
            f" {type(dataset).__name__}"
        )
    if not isinstance(partition, GraphPartition):
        raise TypeError(
            "graph scenarios need a partition of graphs, e.g. partition=metis; got"
            f" {type(partition).__name__}"
        )
