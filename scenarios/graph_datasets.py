"""Node classification data sets by name: PyTorch Geometric, ogb, networkx, npz, and the digits."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scenarios.files import read_npz
from scenarios.graph_data import GraphDataset, Preparation, union
from scenarios.locate import damaged, locate

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Where a collection of PyTorch Geometric keeps its files.

    Attributes:
        folder: ``root`` of the loader, relative to the data folder.
        raw: A file of its raw folder, relative to ``folder``. ``{name}``, ``{lower}``,
            ``{upper}``, ``{capital}``, ``{snake}`` stand for spellings of the graph's name,
            ``{short}`` for its first three letters.
        named: Whether the loader takes the graph's name.
    """

    folder: str
    raw: str
    named: bool = True


COLLECTIONS = {
    "Planetoid": Collection(folder="planetoid", raw="{name}/raw/ind.{lower}.graph"),
    "Amazon": Collection(folder="amazon", raw="{capital}/raw/amazon_electronics_{lower}.npz"),
    "Coauthor": Collection(folder="coauthor", raw="{upper}/raw/ms_academic_{short}.npz"),
    "WebKB": Collection(folder="webkb", raw="{lower}/raw/out1_graph_edges.txt"),
    "Actor": Collection(folder="actor", raw="raw/out1_graph_edges.txt", named=False),
    "HeterophilousGraphDataset": Collection(
        folder="heterophilous", raw="{snake}/raw/{snake}.npz"
    ),
    "FacebookPagePage": Collection(folder="facebook", raw="raw/facebook.npz", named=False),
    "Twitch": Collection(folder="twitch", raw="{upper}/raw/{upper}.npz"),
}


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
    named = COLLECTIONS[collection].named
    if named != bool(names):
        wanted = "needs names of its graphs" if named else "is a single graph and takes no names"
        raise ValueError(f"{collection} {wanted}, got {list(names)}")
    chosen = list(names) or [collection]
    graphs = [prepare(_load(collection, name, root, download), name) for name in chosen]
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
    try:
        from ogb.nodeproppred import PygNodePropPredDataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the package ogb, which is not installed: pip install ogb"
        ) from error
    try:
        source = locate(
            name=name,
            wanted=[f"ogb/{name.replace('-', '_')}/raw"],
            root=root,
            origin="ogb.nodeproppred.PygNodePropPredDataset",
            download=lambda folder: PygNodePropPredDataset(name, str(folder / "ogb")),
        )
        work = _writable_copy(source, f"ogb/{name.replace('-', '_')}")
        graph = PygNodePropPredDataset(name, str(work.parent.parent))[0]
    except (EOFError, KeyError) as error:
        raise FileNotFoundError(f"{name}: {error}") from error
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
        raise ValueError(f"{name}: {len(missing)} nodes lack the attribute {label!r}: {missing[:3]}")
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


def _load(collection: str, name: str, root: str, download: bool) -> Any:
    """The raw graph of a PyTorch Geometric collection, read from a writable copy of its files."""
    from torch_geometric import datasets

    files = COLLECTIONS[collection]
    wanted = f"{files.folder}/{files.raw.format(**_spellings(name))}"
    arguments = {"name": name} if files.named else {}

    def load(folder: Path) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):  # the loaders print what they do
            return getattr(datasets, collection)(root=str(folder / files.folder), **arguments)[0]

    fetch: Callable[[Path], object] | None = load if download else None
    found = locate(
        name=name,
        wanted=[wanted],
        root=root,
        origin=f"torch_geometric.datasets.{collection}",
        download=fetch,
    )
    raw = found.parent
    work = _writable_copy(raw, str(Path(wanted).parent.parent))
    try:
        return load(work.parents[len(Path(wanted).parent.parts) - 1])
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise damaged(raw, error) from error


def _spellings(name: str) -> dict[str, str]:
    return {
        "name": name,
        "lower": name.lower(),
        "upper": name.upper() if len(name) <= 2 else name,
        "capital": name.capitalize(),
        "snake": name.lower().replace("-", "_"),
        "short": name[:3].lower(),
    }


def _writable_copy(raw: Path, folder: str) -> Path:
    """Copies a raw folder to ``<cache>/graphs/<folder>/raw``, where loaders may write beside it."""
    named = os.environ.get("FEDSIM_CACHE")
    cache = Path(named) if named else Path.home() / ".cache" / "fedsim"
    target = cache / "graphs" / folder / "raw"
    for source in sorted(path for path in raw.rglob("*") if path.is_file()):
        copy = target / source.relative_to(raw)
        wanted = source.stat()
        if copy.exists() and copy.stat().st_size == wanted.st_size:
            if copy.stat().st_mtime_ns == wanted.st_mtime_ns:
                continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f"{copy.name}.{os.getpid()}.part")
        shutil.copy2(source, part)
        os.replace(part, copy)
        shutil.rmtree(target.parent / "processed", ignore_errors=True)  # made from other files
    return target
