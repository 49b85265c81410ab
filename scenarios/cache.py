"""Decoded images kept on disk, since decoding takes seconds and reading takes none."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def cached(name: str, source: Path, make: Callable[[], Array]) -> Array:
    """The array that ``make`` returns, from disk where it was made before.

    The file lies in ``$FEDSIM_CACHE``, else ``~/.cache/fedsim``, and is named by the source's size
    and time of change, so changed data is never served from an old copy. It is written under
    another name and then renamed, so a reader never sees half a file. Where the folder cannot be
    written, the array is made each time.

    Args:
        name: What the array is; part of the file's name.
        source: The file or folder that the array is made from.
        make: Makes the array.

    Returns:
        The array, memory-mapped copy-on-write where it comes from disk.
    """
    stat = source.stat()
    path = _folder() / f"{name}-{stat.st_size:x}-{stat.st_mtime_ns:x}.npy"
    try:
        return _load(path)
    except (OSError, ValueError, EOFError):  # absent, or not the file that we wrote
        array = make()
    try:
        _store(path, array)
    except OSError:  # read-only or full: slower next time, but right
        return array
    return _load(path)


def _folder() -> Path:
    named = os.environ.get("FEDSIM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fedsim"


def _load(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _store(path: Path, array: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(part, path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
