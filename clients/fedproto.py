"""Local training whose embeddings stay near the prototypes that all clients share."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.arrays import Records
from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.functional.metric_losses import EPS, icnn_score, proto_triplet_terms
from fedsim.functional.prototypes import (
    Statistics,
    class_means,
    class_statistics,
    open_scores,
    prototype_scores,
)
from fedsim.model import Model, mask_logits
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download

Pull = Literal["mse", "triplet", "icnn"]
PULLS: tuple[str, ...] = get_args(Pull)


class FedProto(Client):
    """Adds a pull of every embedding to its class's global prototype to the cross-entropy.

    ``loss = CE + strength * L``; with ``pull: mse``, ``L = mean_i ||z_i - p_{y_i}||^2 / d``; with
    ``pull: triplet``, ``L`` is the Proto-Triplet loss against the global table, whose negatives
    include classes that the client has never seen; with ``pull: icnn``, ``L = -log(score)`` of
    :func:`icnn_score` with the batch and the table as neighbours. ``mse`` and ``triplet`` leave
    examples of classes without a prototype to the cross-entropy. Prototypes carry no gradient. No
    data of earlier experiences are kept.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        strength: Of the pull, at least 0; ``0`` with ``classifier: head`` is federated averaging.
        pull: ``mse``, ``triplet`` or ``icnn``.
        margin: Of the triplet, in units of distance; unused by the others.
        neighbours: Looked at by ``icnn``; unused by the others.
        classifier: ``prototype`` predicts by the nearest prototype, ``head`` by the model's head.

    Raises:
        ValueError: If a value is out of range.

    Source:
        Tan et al., FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022,
        arXiv:2105.00243. Deviation: the weights are averaged as well, so that there is one model.
        Triplet and ICNN: Méndez-Ruiz et al., 2023, arXiv:2305.09062.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        strength: float,
        pull: Pull = "mse",
        margin: float = 0.5,
        neighbours: int = 4,
        classifier: Literal["prototype", "head"] = "prototype",
    ) -> None:
        super().__init__(setting, training=training)
        if strength < 0:
            raise ValueError(f"client.strength must be 0 or more, got {strength}")
        if pull not in PULLS:
            raise ValueError(f"client.pull must be one of {', '.join(PULLS)}, got {pull!r}")
        if neighbours < 1:
            raise ValueError(f"client.neighbours must be at least 1, got {neighbours}")
        if classifier not in ("prototype", "head"):
            raise ValueError(f"client.classifier must be prototype or head, got {classifier!r}")
        self._strength, self._pull = strength, pull
        self._margin, self._neighbours = margin, neighbours
        self._classifier = classifier

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and the pull to the prototypes."""
        del state
        features = model.features(batch.inputs)
        logits = mask_logits(model.head(features), batch.tasks, self.scenario.task_classes)
        loss = functional.cross_entropy(logits, batch.targets)
        if self._strength == 0.0:
            return loss
        table = down.records["prototypes"]
        classes, means = (table[name].to(features.device) for name in ("classes", "means"))
        return loss + self._strength * self._pulled(features, batch.targets, classes, means)

    def _pulled(self, features: Tensor, targets: Tensor, classes: Tensor, means: Tensor) -> Tensor:
        if self._pull == "icnn":
            others, labels = features, targets
            if len(classes):
                others, labels = torch.cat([features, means]), torch.cat([targets, classes])
            score = icnn_score(features, targets, others, labels, k=self._neighbours, same_set=True)
            return -score.clamp_min(EPS).log()
        known = (targets.unsqueeze(-1) == classes).any(-1)  # isin has no vmap
        if not bool(known.any()):
            return features.sum() * 0.0
        rows = torch.searchsorted(classes, targets[known])
        if self._pull == "mse":
            return functional.mse_loss(features[known], means[rows])
        return proto_triplet_terms(features[known], rows, means, self._margin).loss

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

    def alone(self, records: Records, down: Download) -> Records:
        """See :meth:`Client.alone`: the own classes' means take the place of the table's."""
        own = Statistics(**records["statistics"])
        table = {"classes": own.classes, "means": class_means(own)}
        held = down.records["prototypes"]
        if len(held["classes"]):
            kept = ~torch.isin(held["classes"], own.classes)
            joined = {name: torch.cat([held[name][kept], table[name]]) for name in table}
            order = joined["classes"].argsort()
            table = {name: column[order] for name, column in joined.items()}
        return {**records, "prototypes": table}

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Nearness of known classes, or logits."""
        table = down.records["prototypes"]
        if self._classifier == "head" or len(table["classes"]) == 0:
            return super().predict(model, batch, down, state)
        features = model.features(batch.inputs)
        scores = prototype_scores(features, table["means"].to(features.device))
        spread = open_scores(scores, table["classes"], self.scenario.num_classes)
        return mask_logits(spread, batch.tasks, self.scenario.task_classes)
