"""Where the files of a data set lie: FEDSIM_DATA, the data folder, or a download."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

Download = Callable[[Path], object]


def locate(
    *,
    name: str,
    wanted: Sequence[str],
    root: str,
    origin: str,
    download: Download | None = None,
) -> Path:
    """The first of the wanted paths that exists, downloading the data where none does.

    Looks into the folder that the environment variable ``FEDSIM_DATA`` names, then into ``root``.

    Args:
        name: Name of the data set, for the error.
        wanted: Paths relative to either folder, the preferred one first.
        root: Data folder where ``FEDSIM_DATA`` is unset, and where downloads go unless
            ``FEDSIM_DATA`` is writable.
        origin: Where the data comes from, for the error.
        download: Fetches the data into the given folder; None never downloads.

    Raises:
        FileNotFoundError: If the data is neither there nor can be fetched.
    """
    folders = _folders(root)
    found = _first(folders, wanted)
    if found is not None:
        return found
    reason = "downloading is off"
    if download is not None:
        try:
            download(_writable(folders))
            reason = "the download left no such file"
        except (OSError, RuntimeError, ValueError) as error:
            reason = f"the download failed: {' '.join(str(error).split())}"
    found = _first(folders, wanted)
    if found is not None:
        return found
    raise FileNotFoundError(
        f"{name} not found: looked for {' or '.join(wanted)} in"
        f" {' and '.join(str(folder.absolute()) for folder in folders)};"
        f" it comes from {origin} ({reason});"
        f" set FEDSIM_DATA to a folder that holds {wanted[0]}"
    )


def damaged(path: Path, error: BaseException | str) -> ValueError:
    """The error for a file that is there but cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is damaged or cut short ({reason}); delete it and get it again")


def _folders(root: str) -> list[Path]:
    named = os.environ.get("FEDSIM_DATA")
    return ([Path(named)] if named else []) + [Path(root)]


def _writable(folders: Sequence[Path]) -> Path:
    """The first folder that takes files; the last one is made where none does."""
    for folder in folders[:-1]:
        # root may write anywhere, but a folder marked as read-only is not meant to change
        if os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:
            return folder
    folders[-1].mkdir(parents=True, exist_ok=True)
    return folders[-1]


def _first(folders: Sequence[Path], wanted: Sequence[str]) -> Path | None:
    paths = (folder / relative for folder in folders for relative in wanted)
    return next((path for path in paths if path.exists()), None)
