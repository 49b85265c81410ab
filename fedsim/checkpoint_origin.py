"""Which run a checkpoint belongs to, and the newest one that is whole."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from fedsim.checkpoint_files import CheckpointError, DamagedError, Entry, manifests, read_manifest
from fedsim.checks import Node

HARMLESS = (
    "progress",
    "overwrite",
    "resume",
    "trust",
    "checkpoint",
)  # say nothing about the results
_HARMLESS_ENGINE = ("workers", "keep_states", "shuffle")


def fingerprint(node: Node) -> Node:
    """What of a configuration the results depend on."""
    kept = {key: value for key, value in node.items() if key not in HARMLESS}
    if isinstance(kept.get("engine"), Mapping):
        kept["engine"] = {k: v for k, v in kept["engine"].items() if k not in _HARMLESS_ENGINE}
    plain: Node = json.loads(json.dumps(kept))
    return plain


def find(run_dir: Path, node: Node, versions: Mapping[str, str | None]) -> Entry:
    """The newest whole checkpoint of a run; one line says so if a newer one is damaged.

    Args:
        run_dir: The run directory.
        node: Its resolved configuration.
        versions: Of the packages that results depend on.

    Raises:
        CheckpointError: If there is none, or it is of another configuration or other versions.
    """
    damage: list[str] = []
    for path in manifests(run_dir):
        try:
            found = read_manifest(path)
        except DamagedError as error:
            damage.append(f"the checkpoint after round {int(path.stem[6:])} is damaged: {error}")
            continue
        _check_origin(path, found, node, versions)
        for line in damage:
            print(f"fedsim: {line}; going on after round {found['round']}", file=sys.stderr)
        return found
    if damage:
        raise CheckpointError(f"{run_dir}: {damage[0]}; there is no other one")
    raise CheckpointError(f"{run_dir} holds no checkpoint")


def _check_origin(path: Path, found: Entry, node: Node, versions: Mapping[str, str | None]) -> None:
    ours = fingerprint(node)
    theirs = found["config"]
    differ = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
    if differ:
        raise CheckpointError(
            f"{path} is of another configuration ({', '.join(differ)} differ) than config.yaml"
        )
    for name in sorted({*versions, *found["versions"]}):
        was, now = found["versions"].get(name), versions.get(name)
        if was != now:
            raise CheckpointError(
                f"{path} was written with {name} {was}, this is {now}; results would not be the"
                f" same, so install {name} {was} or start anew"
            )
