"""What a configuration says of itself, checked before anything is imported or loaded.

Three reserved keys may stand beside ``_target_`` in any group's file; they are not passed on.

``needs`` and ``provides`` are lists of plain words such as ``images`` or ``task_labels``: what one
choice needs, some other choice must provide.

``facts`` are numbers that are known without loading: of a data set its ``classes``, ``train``
examples and ``shape``; of a backbone the ``smallest`` image side it takes; of a scenario that it
``cuts: classes``; of a partition that it ``shares`` examples between clients; of a strategy that a
round needs ``clients_each`` times the attackers, and three.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"
RESERVED = ("needs", "provides", "facts")
_GROUPS = ("dataset", "scenario", "clock", "backbone", "head", "client", "strategy", "engine")
Node = dict[str, Any]


class ConfigError(ValueError):
    """The configuration cannot work; the text says why and what to change."""


class VoidRoundError(RuntimeError):
    """A round's result may not be used, which ends the run; the text says why."""


def check(node: Node) -> None:
    """Raise :class:`ConfigError` for the first thing that cannot work."""
    _check_groups(node)
    _check_needs(node)
    _check_graph(node)
    _check_numbers(node)
    _check_time(node)
    _check_facts(node)
    _check_malicious(node)
    _check_use(node)
    _check_least(node)


def _check_groups(node: Node) -> None:
    for group in _GROUPS:
        if not node.get(group):
            raise ConfigError(f"the configuration has no {group}; choose one, {group}=...")
    if "graph" in (node["dataset"].get("provides") or ()) and node.get("encoder"):
        raise ConfigError(
            "an encoder takes images, and the data set is a graph; leave it out, encoder=none"
        )


def _check_needs(node: Node) -> None:
    groups = {g: v for g, v in node.items() if isinstance(v, Mapping)}
    provided = {word for group in groups.values() for word in group.get("provides") or ()}
    for name, group in groups.items():
        missing = [word for word in group.get("needs") or () if word not in provided]
        if missing:
            target = str(group.get("_target_", name)).rsplit(".", 1)[-1]
            raise ConfigError(
                f"the {name} ({target}) needs {missing[0]!r}, which no other choice provides"
                f"{_providers(missing[0])}"
            )


def _check_graph(node: Node) -> None:
    """A graph cannot be taken by what does not ask for one."""
    if "graph" not in (node["dataset"].get("provides") or ()):
        return
    for name in ("scenario", "backbone"):
        if "graph" not in (node[name].get("needs") or ()):
            target = str(node[name].get("_target_", name)).rsplit(".", 1)[-1]
            raise ConfigError(
                f"the data set is a graph, which the {name} ({target}) does not take; these do:"
                f" {', '.join(_files(name, 'needs', 'graph'))}"
            )


def _check_numbers(node: Node) -> None:
    for key, lowest in (("num_clients", 1), ("seed", 0)):
        if not isinstance(node[key], int) or node[key] < lowest:
            raise ConfigError(f"{key} must be a whole number of at least {lowest}, got {node[key]}")
    for key, zero in (("participation", False), ("evaluation_participation", True)):
        value = node[key]
        if not isinstance(value, int | float) or not 0 <= value <= 1 or (value == 0 and not zero):
            low = "at least 0" if zero else "above 0"
            raise ConfigError(f"{key} must be {low} and at most 1, got {value}")
    for key in ("server_evaluation", "overwrite", "progress"):
        if not isinstance(node[key], bool):
            raise ConfigError(f"{key} must be true or false, got {node[key]}")


def _check_time(node: Node) -> None:
    """The clock and the scenario must agree on the number of experiences."""
    clock, scenario = node["clock"], node["scenario"]
    ours, theirs = clock.get("num_experiences"), scenario.get("num_experiences", 1)
    if isinstance(theirs, int) and isinstance(ours, int) and ours != theirs:
        raise ConfigError(
            f"clock.num_experiences is {ours} and the scenario has {theirs}; leave"
            " clock.num_experiences as it is"
        )


def _check_facts(node: Node) -> None:
    data = node["dataset"].get("facts") or {}
    scenario, partition = node["scenario"], node.get("partition") or {}
    experiences = scenario.get("num_experiences", 1)
    cuts = (scenario.get("facts") or {}).get("cuts")
    if cuts == "classes" and data.get("classes") and experiences > data["classes"]:
        raise ConfigError(
            f"scenario.num_experiences is {experiences}, but the data has {data['classes']} classes"
            " to share out; use fewer experiences, or another scenario"
        )
    shares = (partition.get("facts") or {}).get("shares", False)
    if data.get("train") and not shares and node["num_clients"] > data["train"]:
        raise ConfigError(
            f"num_clients is {node['num_clients']}, but the data has {data['train']} training"
            " examples; use fewer clients, or partition=resampled, where clients share examples"
        )
    smallest = (node["backbone"].get("facts") or {}).get("smallest")
    shape = data.get("shape")
    if smallest and shape and len(shape) == 3 and min(shape[1:]) < smallest:
        raise ConfigError(
            f"the backbone takes images of at least {smallest}x{smallest} pixels, the data's have"
            f" {shape[1]}x{shape[2]}; use backbone=mlp or backbone=conv4, or larger images"
        )


def _check_malicious(node: Node) -> None:
    """A strategy that withstands attackers must have enough clients besides them in a round."""
    strategy = node["strategy"]
    each = (strategy.get("facts") or {}).get("clients_each")
    if each is None or node.get("mode", "federated") != "federated":
        return
    attackers = strategy["num_malicious_nodes"]
    if not isinstance(attackers, int) or attackers < 0:
        raise ConfigError(f"num_malicious must be a whole number of at least 0, got {attackers}")
    cohort = max(int(node["num_clients"] * node["participation"]), strategy["min_train_nodes"])
    if cohort < each * attackers + 3:
        name = str(strategy["_target_"]).rsplit(".", 1)[-1]
        raise ConfigError(
            f"strategy {name} with num_malicious={attackers} needs at least"
            f" {each * attackers + 3} clients a round, and {cohort} take part; raise num_clients or"
            " participation, or lower num_malicious"
        )


def _check_least(node: Node) -> None:
    """Flower waits for ever for clients that do not exist, and the gate would fail in a round."""
    sizes = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    least = [(f"strategy.{key}", node["strategy"].get(key)) for key in sizes]
    for key, value in (*least, ("gate.min_results", (node.get("gate") or {}).get("min_results"))):
        if isinstance(value, int) and value > node["num_clients"]:
            raise ConfigError(f"{key} is {value}, but num_clients is {node['num_clients']}")


def _check_use(node: Node) -> None:
    """A scenario that deals or orders its examples itself leaves no choice of how."""
    for group, plain in (("partition", "iid"), ("order", "same")):
        chosen = (node.get(group) or {}).get("_target_")
        default = OmegaConf.select(OmegaConf.load(CONF / group / f"{plain}.yaml"), "_target_")
        if group not in node["scenario"] and chosen not in (None, default):
            name = str(node["scenario"]["_target_"]).rsplit(".", 1)[-1]
            raise ConfigError(
                f"the scenario ({name}) has no use for a {group}, so"
                f" {group} ({chosen.rsplit('.', 1)[-1]}) would change nothing; leave it out"
            )


def _providers(word: str) -> str:
    """Which choices would provide the word."""
    found = _files("*", "provides", word)
    return f"; these do: {', '.join(found)}" if found else ""


def _files(group: str, key: str, word: str) -> list[str]:
    """The choices of a group whose list under a reserved key holds the word."""
    found = []
    for path in sorted(CONF.glob(f"{group}/*.yaml")):
        content = OmegaConf.load(path)
        if isinstance(content, DictConfig) and word in (content.get(key) or ()):
            found.append(f"{path.parent.name}={path.stem}")
    return found
