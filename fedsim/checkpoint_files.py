"""The files of a checkpoint: written whole or not at all, and used only if they are whole.

``checkpoints/round-000012.json`` names the other files of the checkpoint after round 12 with their
sizes and SHA-256, and is written last; a checkpoint without it does not exist. Tensors are stored
as safetensors, structure as JSON among them (:mod:`fedsim.codec`): nothing is pickled.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedsim.arrays import Params
from fedsim.checks import ConfigError
from fedsim.codec import Decoder, Form, Node

FOLDER = "checkpoints"
FORMAT = 1  # of the manifest and of what it names
Entry = dict[str, Any]
_MANIFEST = re.compile(r"round-(\d{6,})\.json")
_PART = re.compile(r"(server|clients)-\d{6,}(-\d{3,})?\.safetensors")


class CheckpointError(ConfigError):
    """There is no checkpoint that a run can go on from; the text says why."""


class DamagedError(CheckpointError):
    """A checkpoint's files are not whole."""


def write_whole(path: Path, content: bytes) -> Entry:
    """Write a file beside its place and move it there; its name, size and SHA-256.

    Raises:
        OSError: If the disk is full, for example; what was there before stays.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def write_part(path: Path, params: Params) -> Entry:
    """Write what an encoder finished; its name, size and SHA-256."""
    return write_whole(path, save_tensors(params))


def read_part(path: Path, forms: Sequence[Form], packages: frozenset[str]) -> Any:
    """The value in a file that :func:`write_part` wrote.

    Raises:
        CheckpointError: If the file holds something else; whatever it holds, no code of it runs.
    """
    try:
        decoder = Decoder(forms, {}, packages, load_tensors(path.read_bytes()))
        return decoder.value(decoder.root())
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError),
        *(RecursionError, RuntimeError, SafetensorError),
    ) as error:
        raise CheckpointError(f"{path} cannot be read: {_line(error)}") from error


def write_manifest(run_dir: Path, round_: int, content: Entry) -> Path:
    """Make a checkpoint exist, now that its other files do."""
    body = json.loads(json.dumps({"format": FORMAT, "round": round_, **content}))
    path = run_dir / FOLDER / f"round-{round_:06d}.json"
    text = json.dumps({"checksum": _checksum(body), **body})
    write_whole(path, text.encode())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def manifests(run_dir: Path) -> list[Path]:
    """The manifests in a run directory, the newest first."""
    folder = run_dir / FOLDER
    found = {
        int(match.group(1)): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _MANIFEST.fullmatch(path.name))
    }
    return [found[round_] for round_ in sorted(found, reverse=True)]


def read_manifest(path: Path) -> Entry:
    """A manifest all of whose files are there and whole.

    Raises:
        DamagedError: If one is not, or the results that it counts on are not all there.
        CheckpointError: If another version of fedsim wrote it in another form.
    """
    try:
        content = json.loads(path.read_bytes())
        claimed = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise DamagedError(f"{path.name} is cut off or no manifest") from error
    if claimed != _checksum(content):
        raise DamagedError(f"{path.name} is not what was written")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is of format {content.get('format')}, this fedsim reads {FORMAT}"
        )
    try:
        for entry in parts_of(content):
            _check_part(path.parent, entry)
        for name, size in content["results"]["files"].items():
            _check_results(path.parents[1], name, size)
        whole = isinstance(content["config"], dict) and isinstance(content["versions"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} lacks entries: {_line(error)}") from error
    if not whole or path.name != f"round-{content['round']:06d}.json":
        raise DamagedError(f"{path.name} is no manifest of its round")
    return dict(content)


def parts_of(manifest: Entry) -> list[Entry]:
    """The entries of the other files."""
    return [manifest["server"], *manifest["clients"]]


def remove_all_but(run_dir: Path, kept: Iterable[Entry]) -> None:
    """Remove checkpoints that are not kept, manifests first, and what broken writes left."""
    folder = run_dir / FOLDER
    names: set[str] = set()
    for manifest in kept:
        names |= {f"round-{manifest['round']:06d}.json"}
        names |= {entry["file"] for entry in parts_of(manifest)}
    if not folder.is_dir():
        return
    ours = [
        path
        for path in folder.iterdir()
        if any(p.fullmatch(path.name.removesuffix(".partial")) for p in (_MANIFEST, _PART))
    ]
    for path in sorted(ours, key=lambda path: not path.name.startswith("round-")):
        if path.name not in names:
            path.unlink(missing_ok=True)
    if not names and not any(folder.iterdir()):
        folder.rmdir()


def _check_part(folder: Path, entry: Entry) -> None:
    name = str(entry["file"])
    if not _PART.fullmatch(name):
        raise DamagedError(f"{name!r} is no name of a checkpoint's file")
    path = folder / name
    if not path.is_file() or path.is_symlink():
        raise DamagedError(f"{name} is missing")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedError(f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise DamagedError(f"{name} is not what was written")


def _check_results(run_dir: Path, name: str, size: int) -> None:
    path = run_dir / name
    there = path.stat().st_size if path.is_file() else -1
    if "/" in name or there < size or size < 0:
        raise DamagedError(f"{name} has lost lines that were written before the checkpoint")


def _checksum(content: Node) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
