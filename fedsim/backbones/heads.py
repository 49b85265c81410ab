"""Heads that are no single layer."""

from torch import nn


class MLPHead(nn.Sequential):
    """One hidden layer with ReLU: ``W2 relu(W1 z + b1) + b2``.

    Args:
        num_features: Width ``d`` of the features.
        num_classes: ``K``.
        hidden: Units of the hidden layer.

    Shapes:
        - **input:** features ``[n, d]``.
        - **output:** logits ``[n, K]``.

    Raises:
        ValueError: If ``hidden`` is not positive.
    """

    def __init__(self, num_features: int, num_classes: int, *, hidden: int = 128) -> None:
        if hidden < 1:
            raise ValueError(f"head.hidden must be at least 1, got {hidden}")
        super().__init__(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
