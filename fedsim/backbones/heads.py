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


class XavierLinear(nn.Linear):
    """One linear layer whose weight and bias are Xavier-uniform.

    The bias is drawn as a matrix of one row: ``U(-a, a)`` with ``a = sqrt(6 / (1 + K))``.

    Args:
        num_features: Width ``d`` of the features.
        num_classes: ``K``.

    Shapes:
        - **input:** features ``[n, d]``.
        - **output:** logits ``[n, K]``.

    Source:
        The classifier of FED-PUB's reference code (Baek et al., ICML 2023, arXiv:2206.10206).
    """

    def reset_parameters(self) -> None:
        """Draw weight and bias."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.bias.unsqueeze(0))
