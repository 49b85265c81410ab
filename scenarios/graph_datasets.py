"""Node classification data sets by name: PyTorch Geometric, ogb, networkx, npz, and the digits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scenarios.files import read_npz
from scenarios.graph_data import GraphDataset, Preparation, union
from scenarios.graph_files import COLLECTIONS, load_collection, load_ogbn
from scenarios.locate import locate

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import Data


def pyg(
    *,
    collection: str,
    names: Sequence[str] = (),
    prepare: Preparation,
    root: str = "data",
    download: bool = True,
    class_names: Sequence[str] = (),
) -> GraphDataset:
    """Graphs of one of the :data:`COLLECTIONS`; several become one graph with groups.

    Files are looked for in ``FEDSIM_DATA`` and ``root``, fetched by the loader where they are
    missing, and copied to the cache (``$FEDSIM_CACHE``, else ``~/.cache/fedsim``), where the
    loader may write.

    Args:
        collection: Class of ``torch_geometric.datasets``.
        names: Graphs of the collection; empty for the collections that are a single graph.
        prepare: How each graph is prepared.
        root: Data folder where ``FEDSIM_DATA`` is unset, and where downloads go.
        download: Let the loader fetch what is missing.
        class_names: Name of every class, or empty.

    Raises:
        ValueError: If the collection is unknown or the names do not fit it.
        FileNotFoundError: If the data is neither there nor can be fetched.
    """
    if collection not in COLLECTIONS:
        raise ValueError(f"collection must be one of {', '.join(COLLECTIONS)}; got {collection!r}")
    files = COLLECTIONS[collection]
    chosen = [files.spell(name) for name in names] or [collection]
    if bool(files.names) != bool(names):
        wanted = f"needs names out of {', '.join(files.names)}" if files.names else "has no names"
        raise ValueError(f"{collection} {wanted}, got {list(names)}")
    graphs = [
        prepare(load_collection(collection, name, root=root, download=download), name)
        for name in chosen
    ]
    return _dataset("+".join(chosen), graphs, chosen, class_names)


def pyg_object(
    *, source: Any, name: str, prepare: Preparation, class_names: Sequence[str] = ()
) -> GraphDataset:
    """Any other data set of PyTorch Geometric, already loaded, e.g. ``KarateClub()``.

    Args:
        source: The data set, or its ``Data``.
        name: What the reports call it.
        prepare: How the graph is prepared.
        class_names: Name of every class, or empty.

    Raises:
        ValueError: If it holds more than one graph.
    """
    from torch_geometric.data import Dataset

    if isinstance(source, Dataset):
        if len(source) != 1:
            raise ValueError(
                f"{name}: {len(source)} graphs; only data sets of one graph with classified nodes"
                " are supported, not graph-level data"
            )
        source = source[0]
    return _dataset(name, [prepare(source, name)], [name], class_names)


def ogbn(*, name: str, prepare: Preparation, root: str = "data") -> GraphDataset:
    """A graph of the Open Graph Benchmark, read or fetched by the package ``ogb``.

    Args:
        name: For example ``ogbn-arxiv``.
        prepare: How the graph is prepared.
        root: Data folder where ``FEDSIM_DATA`` is unset or read-only; files lie in ``ogb``.

    Raises:
        ModuleNotFoundError: If ``ogb`` is not installed.
        FileNotFoundError: If the data is neither there nor can be fetched.
    """
    graph = load_ogbn(name, root=root)
    return _dataset(name, [prepare(graph, name)], [name], ())


def networkx_graph(
    *, graph: "networkx.Graph", name: str, label: str, prepare: Preparation
) -> GraphDataset:
    """A networkx graph whose nodes carry their class as an attribute; other attributes are unused.

    Args:
        graph: The graph; of a directed graph the links keep their direction.
        name: What the reports call it.
        label: Node attribute that holds the class; classes are its sorted values.
        prepare: How the graph is prepared; features must be ``degree`` or ``random``.

    Raises:
        ValueError: If a node lacks the attribute.
    """
    from torch_geometric.data import Data

    position = {node: i for i, node in enumerate(graph.nodes)}
    missing = [node for node, attributes in graph.nodes(data=True) if label not in attributes]
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} nodes lack the attribute {label!r}: {missing[:3]}"
        )
    values = [attributes[label] for _, attributes in graph.nodes(data=True)]
    names, y = np.unique(np.array(values), return_inverse=True)
    links = [(position[u], position[v]) for u, v in graph.edges()]
    if not graph.is_directed():
        links += [(v, u) for u, v in links if u != v]
    edge_index = torch.tensor(sorted(set(links)), dtype=torch.int64).reshape(-1, 2).t()
    data = Data(edge_index=edge_index.contiguous(), y=torch.from_numpy(y), num_nodes=len(y))
    return _dataset(name, [prepare(data, name)], [name], [str(value) for value in names])


def npz(*, path: str, name: str, prepare: Preparation, root: str = "data") -> GraphDataset:
    """A graph in an npz file with the keys ``node_features``, ``node_labels`` and ``edges``.

    Args:
        path: The file, relative to ``FEDSIM_DATA`` or ``root``; ``edges`` is ``[L, 2]``, every
            undirected link once.
        name: What the reports call it.
        prepare: How the graph is prepared.
        root: Data folder where ``FEDSIM_DATA`` is unset.
    """
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    origin = "github.com/yandex-research/heterophilous-graphs"
    file = locate(name=name, wanted=[path], root=root, origin=origin)
    keys = ("node_features", "node_labels", "edges", "train_masks", "val_masks", "test_masks")
    x, y, edges, *masks = (torch.from_numpy(array) for array in read_npz(file, *keys))
    train, val, test = (mask.t().bool() for mask in masks)
    data = Data(
        x=x.float(),
        edge_index=to_undirected(edges.t().long().contiguous(), num_nodes=len(y)),
        y=y.long(),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )
    return _dataset(name, [prepare(data, name)], [name], ())


def digits_graph(*, num_neighbors: int = 8, prepare: Preparation) -> GraphDataset:
    """Scikit-learn's handwritten digits as a k-nearest-neighbour graph; nothing is downloaded.

    1,797 nodes, 64 pixel features scaled to ``[0, 1]``, 10 classes. Two digits are linked if one
    is among the nearest neighbours (Euclidean) of the other.

    Args:
        num_neighbors: Neighbours ``k`` of every digit.
        prepare: How the graph is prepared.

    Raises:
        ValueError: If ``num_neighbors`` is not positive.
    """
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    if num_neighbors < 1:
        raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}")
    pixels, y = load_digits(return_X_y=True)
    links = kneighbors_graph(pixels, num_neighbors).tocoo()
    edge_index = torch.from_numpy(np.stack((links.row, links.col)).astype(np.int64))
    data = Data(
        x=torch.from_numpy(pixels / 16.0).float(),
        edge_index=to_undirected(edge_index, num_nodes=len(y)),
        y=torch.from_numpy(y.astype(np.int64)),
    )
    name = "digits_graph"
    return _dataset(name, [prepare(data, name)], [name], [str(digit) for digit in range(10)])


def _dataset(
    name: str, graphs: "list[Data]", names: Sequence[str], class_names: Sequence[str]
) -> GraphDataset:
    data, groups = union(graphs, names)
    num_classes = int(data.y.max()) + 1
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"{name}: {len(class_names)} class names for {num_classes} classes")
    return GraphDataset(
        name=name,
        data=data,
        num_classes=num_classes,
        class_names=tuple(class_names),
        groups=groups,
        group_names=tuple(names) if groups is not None else (),
    )
