"""Counts the multiplications of a forward pass, layer by layer.

Torch's own counter (``torch.utils.flop_counter``) sees every operation and not layers only. It also
loads a GPU compiler: 170 MB and a second or two that a run on a CPU has no use for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


class Products:
    """What the layers of a model have multiplied.

    Attributes:
        count: Multiplications of convolutions and fully connected layers so far.
        convolves: Whether there was a convolution.
    """

    def __init__(self) -> None:
        self.count = 0
        self.convolves = False

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        """Add a layer's: every number of its output takes one per weight that reaches it."""
        if isinstance(layer, _ConvNd):
            self.convolves = True
            # a transposed convolution is the reverse: every number of the input goes that far
            ends = inputs[0] if isinstance(layer, _ConvTransposeNd) else out
            self.count += ends.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            self.count += out.numel() * layer.in_features


@contextmanager
def counted(model: nn.Module) -> Iterator[Products]:
    """The multiplications of what the model computes meanwhile."""
    products = Products()
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
    hooks = [layer.register_forward_hook(products.add) for layer in layers]
    try:
        yield products
    finally:
        for hook in hooks:
            hook.remove()
