"""Raw files of graph collections: where they lie, and a writable copy for loaders that need one."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from scenarios.locate import damaged, locate

Load = Callable[[Path], Any]  # reads the graph, given the folder that holds all collections
BROKEN = (OSError, RuntimeError, ValueError, KeyError, IndexError, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Where a collection of PyTorch Geometric keeps its files.

    Attributes:
        folder: ``root`` of the loader, relative to the data folder.
        raw: A file of a graph's raw folder, relative to ``folder``; ``{name}`` is the graph's
            name, ``{lower}`` the same in lower case with ``_`` for ``-``, ``{short}`` its first
            three letters in lower case.
        names: The graphs; empty if the collection is a single one.
    """

    folder: str
    raw: str
    names: tuple[str, ...] = ()

    def spell(self, name: str) -> str:
        """The name as the loader writes it, whatever its case.

        Raises:
            ValueError: If the collection has no such graph.
        """
        spelling = {known.lower(): known for known in self.names}
        if name.lower() not in spelling:
            known = ", ".join(self.names) or "a single graph, which takes no name"
            raise ValueError(f"{self.folder} has no graph {name!r}; it has {known}")
        return spelling[name.lower()]

    def file(self, name: str) -> Path:
        """The file that shows that a graph is there, relative to the data folder."""
        lower = name.lower().replace("-", "_")
        return Path(self.folder, self.raw.format(name=name, lower=lower, short=lower[:3]))


COLLECTIONS = {
    "Planetoid": Collection(
        folder="planetoid",
        raw="{name}/raw/ind.{lower}.graph",
        names=("Cora", "CiteSeer", "PubMed"),
    ),
    "Amazon": Collection(
        folder="amazon",
        raw="{name}/raw/amazon_electronics_{lower}.npz",
        names=("Computers", "Photo"),
    ),
    "Coauthor": Collection(
        folder="coauthor", raw="{name}/raw/ms_academic_{short}.npz", names=("CS", "Physics")
    ),
    "WebKB": Collection(
        folder="webkb",
        raw="{lower}/raw/out1_graph_edges.txt",
        names=("Cornell", "Texas", "Wisconsin"),
    ),
    "Actor": Collection(folder="actor", raw="raw/out1_graph_edges.txt"),
    "HeterophilousGraphDataset": Collection(
        folder="heterophilous",
        raw="{lower}/raw/{lower}.npz",
        names=("Roman-empire", "Amazon-ratings", "Minesweeper", "Tolokers", "Questions"),
    ),
    "FacebookPagePage": Collection(folder="facebook", raw="raw/facebook.npz"),
    "Twitch": Collection(
        folder="twitch",
        raw="{name}/raw/{name}.npz",
        names=("DE", "EN", "ES", "FR", "PT", "RU"),
    ),
}


def load_collection(collection: str, name: str, *, root: str, download: bool) -> Any:
    """The raw graph of a PyTorch Geometric collection, read from a writable copy of its files.

    Args:
        collection: One of :data:`COLLECTIONS`.
        name: The graph, spelled by :meth:`Collection.spell`; ignored for single graphs.
        root: Data folder where ``FEDSIM_DATA`` is unset, and where downloads go.
        download: Let the loader fetch what is missing.

    Raises:
        FileNotFoundError: If the data is neither there nor can be fetched.
        ValueError: If it is damaged.
    """
    from torch_geometric import datasets

    files = COLLECTIONS[collection]
    arguments = {"name": name} if files.names else {}

    def load(folder: Path) -> Any:
        return getattr(datasets, collection)(root=str(folder / files.folder), **arguments)[0]

    origin = f"torch_geometric.datasets.{collection}"
    return _read(name, files.file(name), load, root=root, origin=origin, download=download)


def load_ogbn(name: str, *, root: str) -> Any:
    """The raw graph of a node data set of the Open Graph Benchmark.

    Raises:
        ModuleNotFoundError: If ``ogb`` is not installed.
        FileNotFoundError: If the data is neither there nor can be fetched.
        ValueError: If it is damaged.
    """
    try:
        from ogb.nodeproppred import PygNodePropPredDataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the package ogb, which is not installed: pip install ogb"
        ) from error

    def load(folder: Path) -> Any:
        return PygNodePropPredDataset(name, str(folder / "ogb"))[0]

    file = Path("ogb", name.replace("-", "_"), "raw", "edge.csv.gz")
    origin = "ogb.nodeproppred.PygNodePropPredDataset"
    return _read(name, file, load, root=root, origin=origin, download=True)


def _read(name: str, file: Path, load: Load, *, root: str, origin: str, download: bool) -> Any:
    """Locate the raw files, copy them to the cache together with what the loader makes, load."""
    found = locate(
        name=name,
        wanted=[str(file)],
        root=root,
        origin=origin,
        download=(lambda folder: _silent(load, folder)) if download else None,
    )
    folder = file.parents[1]  # what holds raw/, relative to the data folder
    source = found.parents[1]
    cached = _cache() / f"{name.lower()}-{_fingerprint(source / 'raw')}"
    try:
        if not cached.exists():
            _store(source, folder, cached, load)
        return _silent(load, cached)
    except BROKEN as error:
        raise damaged(source / "raw", error) from error


def _store(source: Path, folder: Path, cached: Path, load: Load) -> None:
    """Build the copy under another name and rename it: no reader ever sees half of it."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=cached.parent, suffix=".part"))
    try:
        ignore = shutil.ignore_patterns("processed")
        shutil.copytree(source, part / folder, ignore=ignore, copy_function=shutil.copyfile)
        _silent(load, part)
        with contextlib.suppress(FileExistsError, OSError):  # another process was faster
            part.rename(cached)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cache() -> Path:
    named = os.environ.get("FEDSIM_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "fedsim") / "graphs"


def _fingerprint(raw: Path) -> str:
    """Names, sizes and times of the raw files, so that changed data is never read from a copy."""
    digest = blake2b(digest_size=8)
    for path in sorted(path for path in raw.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(raw)}:{stat.st_size}:{stat.st_mtime_ns};".encode())
    return digest.hexdigest()


def _silent(load: Load, folder: Path) -> Any:
    """Loaders print what they do; nobody wants to read it."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return load(folder)
