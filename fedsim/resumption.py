"""Going on with an interrupted run: which may be, and what to say when one ends early."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.checks import CONF, ConfigError, Node

RESUME = "resume="
_MAY_CHANGE = ("progress", "trust", "checkpoint.", "engine.workers", "engine.keep_states")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TARGET = re.compile(r"_target_:\s*([\w.]+)")


class RunStoppedError(RuntimeError):
    """The machine cannot go on with the run; the text says why and how to go on later."""


def asked_for(words: Sequence[str]) -> tuple[Path, list[str]] | None:
    """The run directory that the command line names to go on with, and the other words.

    Raises:
        ConfigError: If ``resume=`` names none.
    """
    named = [word for word in words if word.startswith(RESUME)]
    if not named or named[-1] == f"{RESUME}null":
        return None
    folder = named[-1].removeprefix(RESUME).strip("'\"")
    if not folder:
        raise ConfigError("resume= expects the directory of an interrupted run")
    return Path(folder), [word for word in words if not word.startswith(RESUME)]


def prepare(run_dir: Path, words: Sequence[str] = ()) -> Node:
    """The configuration of an interrupted run, checked before anything of it is used.

    Args:
        run_dir: The run directory.
        words: Overrides; only such that results do not depend on.

    Raises:
        ConfigError: If there is no run to go on with, an override would change its results, or the
            directory cannot be trusted.
    """
    import yaml

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} holds no run: there is no config.yaml in it")
    _check_links(run_dir)
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(node, dict) or "engine" not in node:
        raise ConfigError(f"{path} is no configuration of a run")
    for word in words:
        _override(node, word)
    if node.pop("trust", False) is not True:
        _check_targets(path, node)
    return node


def is_finished(run_dir: Path) -> bool:
    """Whether there is nothing left to do."""
    return (run_dir / "summary.json").exists()


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """The run directory for this process alone.

    Raises:
        ConfigError: If another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(f"another process is at work in {run_dir}") from error
        yield
        (run_dir / ".lock").unlink(missing_ok=True)


def full_disk(error: BaseException | None) -> OSError | None:
    """The error that says that there is no room left to write, if that is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def no_room(error: OSError, way_on: str) -> RunStoppedError:
    """What to raise when there is no room left."""
    where = f", writing {error.filename}" if error.filename else ""
    return RunStoppedError(f"no room left on the disk ({error.strerror}{where}); {way_on}")


def way_on(run_dir: Path, round_: int | None) -> str:
    """How to go on with a run, in words."""
    if round_ is None:
        return "no checkpoint was written, so there is nothing to go on from"
    return f"go on after round {round_} with: fedsim resume={run_dir}"


def _override(node: Node, word: str) -> None:
    import yaml

    key, equals, text = word.lstrip("+").partition("=")
    if not equals or not key.startswith(_MAY_CHANGE):
        raise ConfigError(
            f"{word!r} cannot stand beside resume=: a run goes on as it was begun; only"
            " progress=, trust=, checkpoint.*=, engine.workers= and engine.keep_states= may change"
        )
    *parents, name = key.split(".")
    part: Any = node
    for parent in parents:
        part = part.get(parent) if isinstance(part, dict) else None
    if not isinstance(part, dict) or (name not in part and key not in ("progress", "trust")):
        raise ConfigError(f"there is no key {key!r} in the configuration of this run")
    try:
        part[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{word!r} has no value that can be read") from error


def _check_links(run_dir: Path) -> None:
    """Nothing in the directory may lead out of it: we are going to write to its files."""
    root = run_dir.resolve()
    for folder, folders, files in os.walk(run_dir):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ConfigError(f"{path} leads out of the run directory")


def _check_targets(path: Path, node: Node) -> None:
    """A configuration runs what it names: somebody else's may name only what conf/ does."""
    known = {t for f in CONF.rglob("*.yaml") for t in _TARGET.findall(f.read_text("utf-8"))}
    known.add("fedsim.features.encoded")  # what an encoder makes of a data set
    for target in sorted(_targets(node) - known):
        raise ConfigError(
            f"{path} names {target}, which fedsim's conf/ does not; add trust=true if this run"
            " directory is yours"
        )


def _targets(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*map(_targets, node.values()))
    if isinstance(node, list):
        return set().union(*map(_targets, node))
    return set()
