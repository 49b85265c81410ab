"""Names of classes and functions in an Avalanche strategy's memory, and what they may stand for.

The memory is written down by :mod:`fedsim.codec`. It comes back from files that others may have
touched, so a name is never taken as leave to import or call whatever it stands for.
"""

import importlib
from typing import Any

import torch
from torch.utils.data import default_collate, default_convert

# Objects that open files of their own: nobody keeps them between rounds.
_REFUSED = ("avalanche.training.plugins.checkpoint", "avalanche.logging", "avalanche.checkpointing")


def qualified(thing: Any) -> str | None:
    """``module:name`` by which the very same class or function can be imported, or None."""
    name = getattr(thing, "__name__", "")
    if name and getattr(torch, name, None) is thing:  # torch's functions do not say where they are
        return f"torch:{name}"
    path = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    try:
        return path if imported(path) is thing else None
    except (ImportError, AttributeError, ValueError):
        return None


def imported(path: str) -> Any:
    """The class or function that ``module:name`` stands for; not for stored names."""
    module, name = path.split(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def class_named(path: str, packages: frozenset[str]) -> type:
    """The class that a stored ``module:name`` stands for.

    Args:
        path: What is stored.
        packages: Top-level packages that the class may be of.

    Raises:
        ValueError: If it is none of these packages' classes.
    """
    module, _, name = str(path).partition(":")
    if module.split(".")[0] in packages and not module.startswith(_REFUSED):
        try:
            found = imported(f"{module}:{name}")
        except (ImportError, AttributeError):
            found = None
        if isinstance(found, type) and found.__module__ == module:
            return found
    raise ValueError(f"the stored state names {path}, which is none of the plugins'")


REFERENCES = {
    qualified(thing): thing
    for thing in (
        *(bool, int, float, str, list, tuple, set, frozenset, dict),
        *(torch.zeros, torch.ones, torch.empty, torch.zeros_like, torch.ones_like),
        *(default_collate, default_convert),
    )
}
