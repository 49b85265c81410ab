"""Bounds from the same configuration: all data in one place, or nobody exchanging anything.

``mode=central`` trains one client on the pooled data of all clients: the same examples,
experiences, model and number of steps a round. ``mode=local`` leaves every client alone with its
own data, model and number of steps. ``mode=federated`` is what the configuration says.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from fedsim.checks import CONF, RESERVED, ConfigError, Node

MODES = ("federated", "central", "local")
_TOGETHER = "fedsim.clock.Clock"
_APART = ("fedsim.clock.StaggeredClock", "fedsim.clock.LateClock")


def check_mode(node: Node) -> None:
    """Raise :class:`ConfigError` if the mode is unknown or the client cannot do without its server.

    Args:
        node: The resolved configuration with the reserved keys.
    """
    mode = node.get("mode", "federated")
    if mode not in MODES:
        raise ConfigError(f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}")
    if mode == "federated":
        return
    offered = set(node["strategy"].get("provides") or ())
    for word in node["client"].get("needs") or ():
        if word in offered:
            raise ConfigError(
                f"mode={mode} takes the strategy away, and this client needs what it provides"
                f" ({word}); choose another client, e.g. client=sgd, for the bound"
            )


def in_mode(node: Node) -> Node:
    """The configuration of the run that a mode stands for.

    Args:
        node: A resolved configuration.
    """
    mode = node.get("mode", "federated")
    if mode == "central":
        return _central(node)
    if mode == "local":
        return _local(node)
    return node


def _central(node: Node) -> Node:
    """One client with everybody's data, in everybody's time."""
    clock: Mapping[str, Any] = node["clock"]
    if clock["_target_"] in _APART:
        kept = ("num_experiences", "rounds_per_experience", "evaluate_every")
        clock = {"_target_": _TOGETHER, **{key: clock[key] for key in kept}}
    pooled = {
        "_target_": "fedsim.pooled.Pooled",
        "scenario": node["scenario"],
        "share": node["participation"],
    }
    one: Node = {
        **node,
        "num_clients": 1,
        "participation": 1.0,
        "evaluation_participation": 1.0,
        "scenario": pooled,
        "clock": clock,
    }
    return {**one, "strategy": _strategy("fedavg", one)}


def _local(node: Node) -> Node:
    """The same clients, to whom nothing is sent and who send nothing."""
    alone = {"_target_": "fedsim.alone.Alone", "_partial_": True, "client": node["client"]}
    return {**node, "client": alone, "strategy": _strategy("local", node)}


def _strategy(name: str, node: Node) -> Node:
    """A choice of the strategy group, resolved within the configuration."""
    chosen = OmegaConf.load(CONF / "strategy" / f"{name}.yaml")
    whole = OmegaConf.create({**node, "strategy": chosen})
    strategy: Any = OmegaConf.to_container(whole.strategy, resolve=True)
    return {key: value for key, value in strategy.items() if key not in RESERVED}
