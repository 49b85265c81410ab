"""Compose a configuration, and name what is wrong in an override."""

import difflib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fedsim.checks import CONF, RESERVED, ConfigError, Node, check
from fedsim.modes import check_mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A configuration composed outside the command line, and where its run goes.

    Attributes:
        config: The configuration.
        run_dir: The run directory that the command line would take, unless a run is there already
            and nobody asked for that one.
        choices: The choice of every group.
        overrides: The words it was composed of.
    """

    config: DictConfig
    run_dir: Path
    choices: dict[str, str]
    overrides: list[str]

    def save(self, run_dir: Path) -> None:
        """Leave beside the run what Hydra leaves of a run of the command line."""
        folder = run_dir / ".hydra"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"runtime": {"choices": self.choices}, "overrides": {"task": self.overrides}}
        OmegaConf.save(OmegaConf.create({"hydra": content}), folder / "hydra.yaml")


def add_resolvers() -> None:
    """Teach OmegaConf the functions that the configuration files use."""
    OmegaConf.register_new_resolver("plain", plain, replace=True)


def plain(name: Any) -> str:
    """A name that may become a folder's: no way out of the folder above.

    Raises:
        ConfigError: If it is empty, has separators or leads upwards.
    """
    text = str(name)
    if text in ("", ".", "..") or any(c in text for c in "/\\\0"):
        raise ConfigError(f"name must be a plain name for a folder, got {text!r}")
    return text


def forget(run_dir: Path) -> None:
    """Remove a run directory in which Hydra left its notes and no run began."""
    if not run_dir.is_dir() or any(path.name != ".hydra" for path in run_dir.iterdir()):
        return
    shutil.rmtree(run_dir)
    for folder in run_dir.parents:
        if not folder.is_relative_to(Path.cwd()) or folder == Path.cwd() or any(folder.iterdir()):
            return
        folder.rmdir()


def unused(run_dir: Path) -> Path:
    """The folder, or one beside it: names tell the second, and a run may take less."""
    free, number = run_dir, 1
    while (free / "rounds.jsonl").exists():
        number += 1
        free = run_dir.with_name(f"{run_dir.name}_{number}")
    return free


def compose_run(overrides: list[str]) -> Composed:
    """The configuration with the given overrides, and what the command line would make of it."""
    whole = compose(overrides, with_hydra=True)
    run_dir, chosen = Path(whole.hydra.run.dir), whole.hydra.runtime.choices
    words = list(whole.hydra.overrides.task)
    if not any(word.startswith("hydra.run.dir=") for word in overrides):
        run_dir = unused(run_dir)
    OmegaConf.set_struct(whole, value=False)
    whole.pop("hydra")
    choices = {str(group): str(choice) for group, choice in chosen.items()}
    return Composed(config=whole, run_dir=run_dir, choices=choices, overrides=words)


def compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """The configuration of ``conf/`` with the given overrides, outside the command line.

    Args:
        overrides: As on the command line, ``--config-dir DIR`` included.
        with_hydra: Whether to keep Hydra's own part, ``hydra``.

    Raises:
        ConfigError: If an override names a group choice or a key that does not exist, or there is
            no such folder.
    """
    overrides = _searched(overrides)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    add_resolvers()
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        try:
            return hydra_compose("config", overrides=overrides, return_hydra_config=with_hydra)
        except HydraException as error:
            raise ConfigError(explain(error, overrides)) from error


def _searched(words: list[str]) -> list[str]:
    """The words with ``--config-dir``, which Hydra knows on its command line only, as an override.

    Raises:
        ConfigError: If the folder does not exist.
    """
    left: list[str] = []
    folder: str | None = None
    rest = iter(words)
    for word in rest:
        option, _, value = word.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = value or next(rest, "")
        else:
            left.append(word)
    if folder is None:
        return left
    path = Path(folder).absolute()
    if not folder or not path.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {str(path)!r}")
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return [*left, f"hydra.searchpath=['file://{quoted}']"]


def resolve(config: DictConfig) -> Node:
    """Plain containers with every interpolation resolved, checked, without the reserved keys.

    Raises:
        ConfigError: If a choice needs what no other choice provides, or a number is impossible.
    """
    node = OmegaConf.to_container(with_encoder(config), resolve=True)
    if not isinstance(node, dict):
        raise ConfigError(f"expected a mapping at the top of the configuration, got {type(node)}")
    plain: Node = {str(key): value for key, value in node.items() if key != "hydra"}
    check(plain)
    check_mode(plain)
    stripped: Node = _strip(plain)
    return stripped


def with_encoder(config: DictConfig) -> DictConfig:
    """The configuration with the chosen encoder, if any, put between data set and scenario.

    ``dataset`` then names the features, so everything that refers to it works on vectors.
    """
    if not config.get("encoder"):
        return config
    words = list(config.dataset.get("provides") or ())
    wrapped = {
        "_target_": "fedsim.features.encoded",
        "dataset": OmegaConf.create(config.dataset),
        "encoder": OmegaConf.create(config.encoder),
        "device": config.engine.device,
        "provides": ["vectors" if word == "images" else word for word in words],
        "facts": {k: v for k, v in (config.dataset.get("facts") or {}).items() if k != "shape"},
    }
    copy = config.copy()
    OmegaConf.set_struct(copy, value=False)
    copy.dataset = wrapped
    return copy


def explain(error: Exception, overrides: list[str]) -> str:
    """One paragraph on what is wrong in an override, with the nearest names that exist."""
    text = str(error).strip()
    if "name must be a plain name" in text:
        return re.search(r"name must be[^\n]*", text).group()  # type: ignore[union-attr]
    if found := re.search(r"Could not find '(.+)/([^/']+)'", text):
        return _wrong_choice(*found.groups())
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if f"'{key}'" in text and "Could not override" in text:
            return f"there is no key {key!r} in this configuration{_nearest(key, overrides)}"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def choices(group: str) -> list[str]:
    """The files of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _wrong_choice(group: str, choice: str) -> str:
    known = choices(group)
    if not known:
        groups = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra")
        return f"there is no group {group!r}; the groups are {', '.join(groups)}"
    near = difflib.get_close_matches(choice, known, n=1)
    hint = f", did you mean {near[0]}" if near else ""
    return f"there is no {group}={choice}{hint}; choices: {', '.join(known)}"


def _nearest(key: str, overrides: list[str]) -> str:
    known = _keys(compose(_chosen(overrides)))
    parent = key.rsplit(".", 1)[0] + "." if "." in key else ""
    if elsewhere := _choices_with(key):
        return f"; these choices have it: {', '.join(elsewhere)}"
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    beside = [k for k in known if k.startswith(parent) and "." not in k[len(parent) :]]
    if beside:
        return f"; {'under ' + parent[:-1] if parent else 'at the top'}: {', '.join(beside)}"
    return ""


def _chosen(overrides: list[str]) -> list[str]:
    """The overrides that choose a file of a group, where there is one."""
    pairs = [word.split("=", 1) for word in overrides if "=" in word]
    return [f"{group}={name}" for group, name in pairs if name in choices(group)]


def _choices_with(key: str) -> list[str]:
    """The choices of the key's group whose files have it."""
    group, _, rest = key.partition(".")
    found = []
    for choice in choices(group) if rest else ():
        held: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"))
        for name in rest.split("."):
            held = held[name] if isinstance(held, dict) and name in held else {}
        if held != {}:
            found.append(f"{group}={choice}")
    return found


def _keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    if not isinstance(node, DictConfig):
        return []
    keys: list[str] = []
    for name in map(str, node):
        dotted = f"{prefix}{name}"
        keys.append(dotted)
        if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
            keys += _keys(node[name], f"{dotted}.")
    return keys


def _strip(node: Any) -> Any:
    """The node without the reserved keys."""
    if isinstance(node, dict):
        return {k: _strip(v) for k, v in node.items() if k not in RESERVED}
    if isinstance(node, list):
        return [_strip(item) for item in node]
    return node
