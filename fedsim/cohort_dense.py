"""Cross-entropy of fully connected models of a block of clients, as batched matrix products.

``vmap`` and autograd find the same products, but take several times as long to find them as small
models take to compute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsim.backbones.vision import MLP, Flatten
from fedsim.data import Batch
from fedsim.model import Model

if TYPE_CHECKING:  # a client trains its blocks with this module
    from fedsim.client import Client

Gradients = Callable[[Mapping[str, Tensor], Batch], tuple[Tensor, dict[str, Tensor]]]


def dense_gradients(client: "Client") -> Gradients | None:
    """Computes every client's mean loss ``[k]`` and its gradients ``[k, ...]``, by name.

    None if the loss is not the plain cross-entropy, or the model not fully connected.

    Args:
        client: Whose loss and model.
    """
    model = client.model
    if client.overrides("loss") or type(model) is not Model:
        return None
    backbone, layers = model.backbone, {"head": model.head}
    if type(backbone) is MLP and backbone.dropout == 0.0:
        hidden = {f"backbone.layers.{n}": layer for n, layer in enumerate(backbone.layers)}
        layers = {**hidden, **layers}
    elif type(backbone) is not Flatten:
        return None
    modules = [model, backbone, *layers.values()]
    if any(map(is_altered, modules)) or any(type(m) is not nn.Linear for m in layers.values()):
        return None
    names = list(layers)

    @torch.no_grad()
    def gradients(weights: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        parts = [(weights[f"{n}.weight"], weights.get(f"{n}.bias")) for n in names]
        losses, found = cross_entropy_gradients(parts, batch.inputs.flatten(2), batch.targets)
        named: dict[str, Tensor] = {}
        for name, (weight, bias) in zip(names, found, strict=True):
            named[f"{name}.weight"] = weight
            if f"{name}.bias" in weights:
                named[f"{name}.bias"] = bias
        return losses, named

    return gradients


def cross_entropy_gradients(
    layers: Sequence[tuple[Tensor, Tensor | None]], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Mean cross-entropy of fully connected networks with ReLU between layers, and its gradients.

    Args:
        layers: Weights ``[k, m, d]`` and biases ``[k, m]`` of ``k`` networks, in order.
        inputs: Examples of each network, ``[k, n, d]``.
        targets: Their classes, ``[k, n]``.

    Returns:
        Losses ``[k]``; gradients of weights and biases, in the order of the layers.
    """
    # examples are columns: torch is many times as fast over few classes if they do not come last
    reached = [inputs.transpose(1, 2)]  # what every layer receives, [k, d, n]
    for weight, bias in layers:
        values = reached[-1] if len(reached) == 1 else reached[-1].relu_()
        if bias is None:
            reached.append(torch.bmm(weight, values))
        else:
            reached.append(torch.baddbmm(bias.unsqueeze(2), weight, values))
    scores, chosen = reached.pop().log_softmax(1), targets.unsqueeze(1)
    losses = -scores.gather(1, chosen).mean((1, 2))
    slope = scores.exp_()
    slope.scatter_add_(1, chosen, slope.new_full((1, 1, 1), -1.0).expand_as(chosen))
    slope.div_(targets.shape[1])
    found: list[tuple[Tensor, Tensor]] = []
    for place in range(len(layers) - 1, -1, -1):
        found.append((torch.bmm(slope, reached[place].transpose(1, 2)), slope.sum(2)))
        if place > 0:
            slope = torch.bmm(layers[place][0].transpose(1, 2), slope).mul_(reached[place] > 0)
    return losses, found[::-1]


def is_altered(module: nn.Module) -> bool:
    """Whether hooks may change what a module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
