"""Local training whose embeddings stay near the prototypes that all clients share."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.arrays import Records
from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.functional.metric_losses import proto_triplet_terms
from fedsim.functional.prototypes import class_statistics, open_scores, prototype_scores
from fedsim.model import Model, mask_logits
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class FedProto(Client):
    """Adds a pull of every embedding to its class's global prototype to the cross-entropy.

    ``loss = CE + strength * L``; with ``pull: mse``, ``L = mean_i ||z_i - p_{y_i}||^2 / d``; with
    ``pull: triplet``, ``L`` is the Proto-Triplet loss against the global table, whose negatives
    include classes that the client has never seen. Examples of classes without a prototype get the
    cross-entropy alone. Prototypes carry no gradient. No data of earlier experiences are kept.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        strength: Of the pull, at least 0; ``0`` with ``classifier: head`` is federated averaging.
        pull: ``mse`` or ``triplet``.
        margin: Of the triplet; unused by ``mse``.
        classifier: ``prototype`` predicts by the nearest prototype, ``head`` by the model's head.

    Raises:
        ValueError: If a value is out of range.

    Source:
        Tan et al., FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022,
        arXiv:2105.00243. Deviation: the weights are averaged as well, so that there is one model.
        Triplet: Méndez-Ruiz et al., 2023, arXiv:2305.09062.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        strength: float,
        pull: Literal["mse", "triplet"] = "mse",
        margin: float = 0.5,
        classifier: Literal["prototype", "head"] = "prototype",
    ) -> None:
        super().__init__(setting, training=training)
        if strength < 0:
            raise ValueError(f"client.strength must be 0 or more, got {strength}")
        if pull not in ("mse", "triplet"):
            raise ValueError(f"client.pull must be mse or triplet, got {pull!r}")
        if classifier not in ("prototype", "head"):
            raise ValueError(f"client.classifier must be prototype or head, got {classifier!r}")
        self._strength, self._pull, self._margin = strength, pull, margin
        self._classifier = classifier

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and the pull to the prototypes."""
        del state
        features = model.features(batch.inputs)
        logits = mask_logits(model.head(features), batch.tasks, self.scenario.task_classes)
        loss = functional.cross_entropy(logits, batch.targets)
        classes = down.records["prototypes"]["classes"].to(features.device)
        known = torch.isin(batch.targets, classes)
        if self._strength == 0.0 or not bool(known.any()):
            return loss
        means = down.records["prototypes"]["means"].to(features.device)
        rows = torch.searchsorted(classes, batch.targets[known])
        if self._pull == "mse":
            return loss + self._strength * functional.mse_loss(features[known], means[rows])
        terms = proto_triplet_terms(features[known], rows, means, self._margin)
        return loss + self._strength * terms.loss

    @torch.no_grad()
    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """The model, and ``statistics`` of its embeddings of the experience's data."""
        records = super().upload(model, shard, down, state)
        model.eval()
        parts = [
            model.features(self.on_device(batch).inputs).cpu()
            for batch in shard.batches(max(self.training.batch_size, 256))
        ]
        statistics = class_statistics(torch.cat(parts), shard.targets)
        return {**records, "statistics": statistics._asdict()}

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Nearness of known classes, or logits."""
        table = down.records["prototypes"]
        if self._classifier == "head" or len(table["classes"]) == 0:
            return super().predict(model, batch, down, state)
        features = model.features(batch.inputs)
        scores = prototype_scores(features, table["means"].to(features.device))
        spread = open_scores(scores, table["classes"], self.scenario.num_classes)
        return mask_logits(spread, batch.tasks, self.scenario.task_classes)
