"""A backbone with a classification head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedsim.data import Inputs


class Model(nn.Module):
    """Backbone and head.

    The head has one output per class of the scenario from the start, so that parameter shapes
    never change: averaging, vectorisation and resuming stay simple. It follows that a model knows
    how many classes there will be; methods with an open label space use prototypes instead.

    Args:
        backbone: Any module with an integer ``num_features`` that maps inputs to ``[n, d]``.
        num_classes: Number of outputs ``K``.
        head: Builds the head from ``(d, K)``.

    Shapes:
        - **input:** whatever the backbone takes, ``[n, ...]`` or a graph.
        - **output:** logits ``[n, K]``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        num_features = getattr(backbone, "num_features", None)
        if not isinstance(num_features, int):
            raise TypeError(
                f"{type(backbone).__name__} has no integer `num_features`, so it cannot be a "
                f"backbone (got {num_features!r})"
            )
        self.backbone = backbone
        self.head = head(num_features, num_classes)

    @property
    def num_features(self) -> int:
        """Width ``d`` of the features."""
        return int(self.backbone.num_features)  # type: ignore[arg-type]

    def features(self, inputs: Inputs) -> Tensor:
        """Features ``[n, d]``."""
        features: Tensor = self.backbone(inputs)
        return features

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[n, K]``."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


def mask_logits(logits: Tensor, tasks: Tensor | None, task_classes: Tensor | None) -> Tensor:
    """Logits with the classes of other tasks at minus infinity.

    One full-width head with this mask computes the same as one head per task.

    Args:
        logits: ``[n, K]``.
        tasks: Task of every example, ``[n]``; None leaves the logits alone.
        task_classes: Bool ``[E, K]``.

    Returns:
        ``[n, K]``.
    """
    if tasks is None or task_classes is None:
        return logits
    return logits.masked_fill(~task_classes.to(logits.device)[tasks], -torch.inf)
