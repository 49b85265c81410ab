"""A node classification data set as one graph, and how a raw graph is prepared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedsim.data import check_finite, check_targets
from fedsim.seeding import generator

if TYPE_CHECKING:  # torch_geometric takes two seconds to import
    from torch_geometric.data import Data

MASKS = ("train_mask", "val_mask", "test_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphDataset:
    """One homogeneous graph whose nodes are classified.

    Several graphs (countries, for example) are the components of one graph; ``groups`` tells them
    apart.

    Attributes:
        name: What the reports call it.
        data: Node features ``x`` ``[N, D]`` (float), links ``edge_index`` ``[2, L]`` (both
            directions of an undirected link), classes ``y`` ``[N]``, and the data set's own
            ``train_mask``, ``val_mask``, ``test_mask`` where it has them.
        num_classes: Number of classes ``K``.
        class_names: Name of every class, or empty.
        groups: Graph every node comes from, int64 ``[N]``, or None for a single graph.
        group_names: Name of every group, or empty.

    Raises:
        TypeError: If features or classes are of a type that models cannot take.
        ValueError: If a class or the end of a link does not exist, features are missing or not
            finite, or there are more or fewer of something than nodes.
    """

    name: str
    data: "Data"
    num_classes: int
    class_names: tuple[str, ...] = ()
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        x, y, links, where = self.data.x, self.data.y, self.data.edge_index, f"graph {self.name}"
        if not all(isinstance(part, Tensor) for part in (x, y, links)):
            raise TypeError(f"{where} needs tensors x, y and edge_index; a Preparation makes them")
        check_targets(y, self.num_classes, where)
        if x.dtype != torch.float32 or x.dim() != 2:
            raise TypeError(
                f"{where}: x must be float32 of shape (N, D), got {x.dtype} {tuple(x.shape)}"
            )
        check_finite(x, where)
        if len(x) != len(y) or (self.groups is not None and len(self.groups) != len(y)):
            groups = "no" if self.groups is None else len(self.groups)
            raise ValueError(f"{where}: {len(y)} classes y, {len(x)} rows of x, {groups} groups")
        if links.dtype != torch.int64 or links.dim() != 2 or len(links) != 2:
            raise ValueError(
                f"{where}: edge_index must be int64 of shape (2, L), got {links.dtype}"
                f" {tuple(links.shape)}"
            )
        if links.numel() and (links.min() < 0 or links.max() >= len(y)):
            raise ValueError(
                f"{where}: edge_index names nodes {links.min()} to {links.max()} of {len(y)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How a raw graph becomes a data set; the steps run in the order of the attributes.

    Attributes:
        undirected: Add the reverse of every link.
        largest_component: Keep the largest (weakly) connected component.
        features: ``own`` keeps the graph's features; ``degree`` replaces them by the one-hot
            degree, clipped at ``num_features - 1``; ``random`` by independent N(0, 1) numbers.
        num_features: Columns ``D`` of ``degree`` and ``random`` features.
        feature_seed: Draws the ``random`` features.
        normalize_features: Shift the features to a minimum of 0 and scale every row to sum 1.
    """

    undirected: bool = False
    largest_component: bool = False
    features: Literal["own", "degree", "random"] = "own"
    num_features: int = 64
    feature_seed: int = 0
    normalize_features: bool = False

    def __post_init__(self) -> None:
        if self.features not in ("own", "degree", "random"):
            raise ValueError(f"features must be own, degree or random, got {self.features!r}")
        if self.num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {self.num_features}")

    def __call__(self, data: Any, name: str) -> "Data":
        """The prepared graph.

        Args:
            data: What a loader gave.
            name: Name of the data set, for errors.

        Raises:
            TypeError: If the graph is heterogeneous.
            ValueError: If it is no node classification, or lacks the features it should have.
        """
        from torch_geometric import transforms

        graph = node_classification(data, name)
        if self.undirected:
            graph = transforms.ToUndirected()(graph)
        if self.largest_component:
            graph = transforms.LargestConnectedComponents()(graph)
        graph.x = self._features(graph, name)
        return transforms.NormalizeFeatures()(graph) if self.normalize_features else graph

    def _features(self, graph: "Data", name: str) -> Tensor:
        num_nodes, columns = int(graph.y.numel()), self.num_features
        if self.features == "degree":
            degree = torch.bincount(graph.edge_index[0], minlength=num_nodes)
            return torch.eye(columns)[degree.clamp(max=columns - 1)]
        if self.features == "random":
            rng = generator(self.feature_seed, "node features")
            return torch.randn(num_nodes, columns, generator=rng)
        if graph.x is None:
            raise ValueError(
                f"{name}: the nodes have no features; set dataset.prepare.features=degree or"
                " dataset.prepare.features=random"
            )
        own: Tensor = graph.x.to_dense() if graph.x.layout != torch.strided else graph.x
        return own.float()


def node_classification(data: Any, name: str) -> "Data":
    """A fresh graph with ``x``, ``edge_index``, ``y`` and masks, if nodes are what it classifies.

    Raises:
        TypeError: If the graph is heterogeneous.
        ValueError: If the labels do not belong to nodes or are no classes.
    """
    from torch_geometric.data import Data, HeteroData

    if isinstance(data, HeteroData):
        raise TypeError(
            f"{name}: heterogeneous graphs ({len(data.node_types)} node types,"
            f" {len(data.edge_types)} link types) are not supported; give one homogeneous graph,"
            " e.g. data.to_homogeneous()"
        )
    if not isinstance(data, Data):
        raise TypeError(f"{name}: expected a torch_geometric Data, got {type(data).__name__}")
    if "edge_label" in data or "edge_label_index" in data:
        raise ValueError(f"{name}: labels belong to links; only node classification is supported")
    y = data.y
    if y is None or data.edge_index is None:
        raise ValueError(f"{name}: a graph with edge_index and node classes y is needed")
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    if y.dim() != 1 or len(y) != data.num_nodes:
        raise ValueError(
            f"{name}: expected one class per node, y of shape ({data.num_nodes},), got"
            f" {tuple(data.y.shape)}; graph-level, link-level and multi-label data are not"
            " supported"
        )
    if y.is_floating_point():
        raise ValueError(
            f"{name}: targets are real numbers ({y.dtype}); only classes are supported"
        )
    if len(y) == 0 or int(y.min()) < 0:
        raise ValueError(f"{name}: every node needs a class in [0, K)")
    masks = {mask: data[mask] for mask in MASKS if mask in data}
    return Data(x=data.x, edge_index=data.edge_index, y=y.long(), **masks)


def union(graphs: Sequence["Data"], names: Sequence[str]) -> "tuple[Data, Tensor | None]":
    """The disjoint union of graphs, and the graph every node comes from (None for one graph).

    Raises:
        ValueError: If the graphs differ in their number of features.
    """
    from torch_geometric.data import Data

    if len(graphs) == 1:
        return graphs[0], None
    columns = {name: int(graph.x.shape[1]) for name, graph in zip(names, graphs, strict=True)}
    if len(set(columns.values())) > 1:
        raise ValueError(f"the graphs differ in their number of features: {columns}")
    sizes = torch.tensor([len(graph.y) for graph in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()
    links = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)]
    masks = {
        mask: torch.cat([graph[mask] for graph in graphs])
        for mask in MASKS
        if all(mask in graph for graph in graphs)
    }
    data = Data(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat(links, dim=1),
        y=torch.cat([graph.y for graph in graphs]),
        **masks,
    )
    return data, torch.repeat_interleave(torch.arange(len(graphs)), sizes)
