"""The files of a run directory, read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from fedsim.model import Model


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty without the file."""
    import yaml

    if not path.exists():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return content if isinstance(content, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> "pd.DataFrame":
    """A file of JSON lines as a table; a last line that was cut off is left out."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame()
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and not lines[-1].rstrip().endswith("}"):
        lines.pop()
    return pd.DataFrame([json.loads(line) for line in lines])


def trained_model(path: Path, weights: "Mapping[str, Tensor]", *, trust: bool) -> "Model":
    """The model of a run's configuration with the given weights, in evaluation mode.

    Args:
        path: The run directory.
        weights: Every tensor of the model, by name.
        trust: Whether the configuration may name classes that ``conf/`` does not.

    Raises:
        ConfigError: If the configuration cannot be trusted.
        ValueError: If the weights are not those of a model.
    """
    from fedsim.build import build
    from fedsim.resumption import prepare
    from fedsim.setting import initial_model

    node = prepare(path, [f"trust={str(trust).lower()}"])
    model = initial_model(build({**node, "logger": None}).setting)
    names, wanted = set(weights), set(model.state_dict())
    if names != wanted:
        raise ValueError(
            f"the server of this method holds no whole model: it has no"
            f" {', '.join(sorted(wanted - names)[:3]) or 'other names'}; see Run.weights"
        )
    model.load_state_dict(dict(weights))
    return model.eval()
