"""What clients ask for that exchange more than models about the nodes of one graph."""

from fedsim.client import Setting
from fedsim.model import Model


def check_whole_graph(name: str, setting: Setting, model: Model, attribute: str) -> None:
    """Raise ValueError unless every client has all its nodes at once, and a network to embed them.

    Args:
        name: The client's name in the configuration.
        setting: What all clients share.
        model: The client's model.
        attribute: What the scenario must offer.
    """
    if not hasattr(setting.scenario, attribute) or not hasattr(model.backbone, "embed"):
        raise ValueError(f"client={name} needs a graph scenario and a graph backbone")
    if setting.scenario.num_experiences != 1:
        raise ValueError(
            f"client={name} needs all nodes at once (scenario=graph), got"
            f" {setting.scenario.num_experiences} experiences"
        )
