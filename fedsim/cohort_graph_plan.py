"""Which clients that hold graphs are trained at once, and when that is faster."""

from typing import TYPE_CHECKING

import torch
from torch import nn, optim
from torch_geometric.nn import GCNConv

from fedsim.backbones.graph import GCN
from fedsim.cohort_dense import is_altered
from fedsim.model import Model

if TYPE_CHECKING:  # it is imported by the modules that run clients, which know them already
    from fedsim.client import Client

MAX_WEIGHTS = 300_000  # numbers in the parameters of one client, beyond which caches stop helping


def graph_objection(client: "Client") -> str | None:
    """Why the graphs of several clients are not computed at once, or None."""
    model, scenario = client.model, client.scenario
    head = getattr(model, "head", None)
    if type(model) is not Model or type(model.backbone) is not GCN:
        return "of graph networks only a GCN is stacked"
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return "of graph networks only a GCN with a linear head is stacked"
    layers = list(model.backbone.layers)
    if any(type(layer) is not GCNConv for layer in layers) or any(map(is_altered, model.modules())):
        return "the graph network has been altered"
    if {n for n, p in model.named_parameters() if p.requires_grad} != _names(len(layers)):
        return "the graph network is frozen in part or has no bias"
    if scenario.num_experiences > 1 or scenario.task_classes is not None:
        return "the graph changes over time"
    if client.setting.device != "cpu":
        return "graphs are joined on the CPU only"
    return None


def gains(client: "Client", weights: int) -> bool:
    """Whether a block is faster than its clients one by one (measured on CPUs).

    Larger models leave the caches; the steps of Adam are then still faster in one pass.

    Args:
        client: Serves all of them.
        weights: Numbers in the parameters of one.
    """
    probe = client.training.optimizer([nn.Parameter(torch.zeros(1))])
    return weights <= MAX_WEIGHTS or isinstance(probe, optim.Adam)


def _names(num_layers: int) -> set[str]:
    layers = [f"backbone.layers.{i}" for i in range(num_layers)]
    parts = {f"{layer}.{part}" for layer in layers for part in ("lin.weight", "bias")}
    return parts | {"head.weight", "head.bias"}
