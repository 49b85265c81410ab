"""iCaRL at many clients: exemplars from the server, distillation, nearest mean of exemplars."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.arrays import Params, Records
from fedsim.client import Client, Setting
from fedsim.cut import GraphCut
from fedsim.data import Batch, Shard
from fedsim.functional.exemplars import distillation, herding
from fedsim.functional.prototypes import (
    class_means,
    class_statistics,
    open_scores,
    prototype_scores,
)
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download

OLD_LOGITS = 512  # exemplars a batch when the received model is asked


class ICaRL(Client):
    """Trains on new examples together with the federation's exemplars, and picks new exemplars.

    ``loss = CE + distillation`` (:func:`distillation`) with the received model's logits of the
    classes that have exemplars. Prediction is by the nearest mean of exemplars, with features on
    the unit sphere; before there are any, by the head. What a client keeps between rounds is
    nothing: the exemplars come with the download and their images travel.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        exemplars: Examples of a class that a client offers, chosen by herding.
        temperature: Of the distillation, positive.

    Raises:
        ValueError: If a value is out of range.

    Source:
        Rebuffi et al., iCaRL, CVPR 2017, arXiv:1611.07725, extended to many clients as a
        comparator by Hendryx et al., 2021, arXiv:2109.00150. Deviation: softmax cross-entropy.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        exemplars: int,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(setting, training=training)
        if isinstance(setting.scenario, GraphCut):
            raise ValueError(
                "client=icarl sends single examples, and nodes cannot be cut from their graph; use"
                " client=replay, ewc, fedproto or prototypes"
            )
        if exemplars < 1:
            raise ValueError(f"client.exemplars must be at least 1, got {exemplars}")
        if temperature <= 0:
            raise ValueError(f"client.temperature must be positive, got {temperature}")
        self._exemplars, self._temperature = exemplars, temperature
        self._means: Tensor | None = None
        self._classes = torch.empty(0, dtype=torch.int64)
        self._old: Tensor | None = None  # the received model's logits of the batch at hand

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """The model, and the means of the exemplars under it."""
        super().load(model, down, state)
        held = down.records["exemplars"]
        self._means = None
        self._classes = torch.unique(held["labels"])
        if len(held["labels"]):
            statistics = class_statistics(self._unit(model, held["inputs"]), held["labels"])
            self._means = class_means(statistics)

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """Passes over the union of the experience's data and the exemplars."""
        del state
        held = down.records["exemplars"]
        inputs, targets = shard.inputs, shard.targets
        if len(held["labels"]):
            inputs = torch.cat([inputs, held["inputs"]])
            targets = torch.cat([targets, held["labels"]])
        old = self._logits(self.model, inputs) if len(self._classes) else None
        size = self.training.batch_size or len(targets)
        self.model.train()
        for _ in range(self.training.epochs):
            for rows in torch.randperm(len(targets), generator=rng).split(size):  # type: ignore[no-untyped-call]
                self._old = None if old is None else old[rows]
                yield Batch(inputs[rows], targets[rows])

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and distillation."""
        del down, state
        logits = model(batch.inputs)
        loss = functional.cross_entropy(logits, batch.targets)
        if self._old is None:
            return loss
        old = self._old.to(logits.device)
        return loss + distillation(logits, old, self._classes, self._temperature)

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """The model, and ``exemplars``: ``inputs`` ``[m, ...]`` and ``labels`` ``[m]``."""
        records = super().upload(model, shard, down, state)
        features = self._unit(model, shard.inputs)
        rows: list[Tensor] = []
        for label in torch.unique(shard.targets):
            members = (shard.targets == label).nonzero().flatten()
            rows.append(members[herding(features[members], self._exemplars)])
        chosen = torch.cat(rows)
        exemplars: Params = {"inputs": shard.inputs[chosen], "labels": shard.targets[chosen]}
        return {**records, "exemplars": exemplars}

    def alone(self, records: Records, down: Download) -> Records:
        """See :meth:`Client.alone`: the own exemplars join those that were received."""
        held, own = down.records["exemplars"], records["exemplars"]
        joined = held if len(held["labels"]) else {n: t[:0] for n, t in own.items()}
        return {**records, "exemplars": {n: torch.cat([joined[n], own[n]]) for n in own}}

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Nearness of the classes that have exemplars, or logits where none has."""
        if self._means is None:
            return super().predict(model, batch, down, state)
        features = functional.normalize(model.features(batch.inputs), dim=1)
        scores = prototype_scores(features, self._means.to(features.device))
        return open_scores(scores, self._classes, self.scenario.num_classes)

    @torch.no_grad()
    def _unit(self, model: Model, inputs: Tensor) -> Tensor:
        """Features on the unit sphere, with the model in evaluation mode."""
        model.eval()
        parts = [model.features(part.to(self.setting.device)).cpu() for part in _parts(inputs)]
        return functional.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def _logits(self, model: Model, inputs: Tensor) -> Tensor:
        model.eval()
        return torch.cat([model(part.to(self.setting.device)).cpu() for part in _parts(inputs)])


def _parts(inputs: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = inputs.split(OLD_LOGITS)  # type: ignore[no-untyped-call]
    return parts
