"""A probe: only the head is trained, on a frozen backbone's features."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.model import Model, mask_logits
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class Probe(Client):
    """Trains the head alone: with ``head=linear`` the linear probe, with ``head=mlp`` the MLP one.

    The backbone stays as it was drawn or loaded, batch normalisation included. With a backbone that
    has nothing to train it is :class:`clients.sgd.SGD`.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.

    Raises:
        ValueError: If ``label_smoothing`` is out of range.

    Source:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
        arXiv:1610.01644.
    """

    def __init__(
        self, setting: Setting, *, training: LocalTraining, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(setting, training=training)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"client.label_smoothing must lie in [0, 1), got {label_smoothing}")
        if label_smoothing > 0 and setting.scenario.task_classes is not None:
            raise ValueError("client.label_smoothing must be 0 where task labels are told")
        self._smoothing = label_smoothing
        self.model.backbone.requires_grad_(False)

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """The same batches, with the backbone in evaluation mode."""
        self.model.backbone.eval()
        yield from super().batches(shard, down, state, rng)

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy with label smoothing."""
        del down, state
        logits = mask_logits(model(batch.inputs), batch.tasks, self.scenario.task_classes)
        return functional.cross_entropy(logits, batch.targets, label_smoothing=self._smoothing)
