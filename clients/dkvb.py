"""Client of the discrete key-value bottleneck: trains values, sends the rows that it touched."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clients.dkvb_cohort import Touched, phase, reason_against, train_cohort
from fedsim.arrays import Params, Records
from fedsim.backbones.keyvalue_head import KeyValueHead
from fedsim.backbones.keyvalue_options import KeyFitting
from fedsim.client import Client, Setting
from fedsim.data import Batch, Dataset, Shard
from fedsim.functional.codebooks import Cells, assign
from fedsim.functional.keyvalue import fetch_counts
from fedsim.functional.rows import overlay
from fedsim.model import Model, mask_logits
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download, Upload

FEATURE_BATCH = 1024


class DKVB(Client):
    """Trains the values of a key-value bottleneck on a frozen encoder's features.

    Encoder and keys are frozen, so the rows that an example fetches never change: they are looked
    up once, and training is an ``EmbeddingBag`` over row numbers. What is sent are the rows that
    the client's examples fetched, as differences to what it received, with how often each was
    fetched. The method uses no task boundaries.

    Keys are the standard normal ones of the seed; those fitted to ``public`` data, which every
    process regenerates; or the server's, fitted in its key rounds to sums over the clients'
    unlabelled data.

    Args:
        setting: What all clients share; the model's head must be a ``KeyValueHead``.
        training: Optimiser, epochs, batch size.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.
        key_data: Unlabelled data used in key rounds: ``all`` of the client's or those of its
            ``current`` experience.
        public: Data whose training inputs the keys are fitted to before the run, or None.
        key_fitting: How keys are fitted to ``public``.

    Raises:
        ValueError: If the head is another one, or a value is out of range.

    Source:
        Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240. The federated
        form is ours.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        label_smoothing: float = 0.1,
        key_data: Literal["all", "current"] = "all",
        public: Dataset | None = None,
        key_fitting: KeyFitting | None = None,
    ) -> None:
        super().__init__(setting, training=training)
        head = self.model.head
        if not isinstance(head, KeyValueHead):
            raise ValueError(f"client=dkvb needs head=keyvalue, got {type(head).__name__}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"client.label_smoothing must lie in [0, 1), got {label_smoothing}")
        if label_smoothing > 0 and setting.scenario.task_classes is not None:
            raise ValueError(
                "client.label_smoothing must be 0 where task labels are told: it would ask for"
                " classes of other tasks"
            )
        if key_data not in ("all", "current"):
            raise ValueError(f"client.key_data must be all or current, got {key_data!r}")
        self.head = head
        self.label_smoothing, self._key_data = label_smoothing, key_data
        self.model.backbone.requires_grad_(False).eval()
        if public is not None:
            inputs = public.train.take(np.arange(len(public.train.targets)))
            head.fit_keys(self._features(inputs), key_fitting or KeyFitting())
        self._start = head.values.detach().clone()
        self._keys: Tensor = head.keys  # as last received
        self._rows: dict[tuple[int, int], Tensor] = {}  # looked up, by client and experience
        self._touched: dict[tuple[int, int], Touched] = {}
        self._reason = reason_against(self)  # why clients are trained one by one, if they are

    # ---- what comes in ---------------------------------------------------------------------

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """Put keys, masks, values and decoder of the download into the head."""
        del model
        head, records = self.head, down.records
        self.receive_keys(down, state)
        masked = torch.zeros_like(head.masked)
        if "masked" in records:
            masked[records["masked"]["indices"]] = True
        if not torch.equal(masked, head.masked):
            head.masked.copy_(masked)
            self._forget_rows()
        received = records["values"]
        with torch.no_grad():
            head.values.copy_(self._start)
            head.values[received["indices"]] = received["values"].to(head.values.device)
            head.values[head.masked] = 0.0  # also where a codebook has nothing else to fetch
            head.counts.zero_()
            head.counts[received["indices"]] = received["counts"].to(head.counts.device)
        if "decoder" in records and head.decoder is not None:
            head.decoder.load_state_dict(records["decoder"])

    def receive_keys(self, down: Download, state: ClientState) -> None:
        """Keep the keys of the download, and look up by those that the client has."""
        if "keys" in down.records:
            state["keys"] = down.records["keys"]
        if "keys" in state:
            self._use_keys(state["keys"]["keys"])

    def _use_keys(self, keys: Tensor) -> None:
        if keys is self._keys or torch.equal(keys, self._keys.cpu()):
            return
        self.head.keys.copy_(keys)
        self._keys = keys
        self._forget_rows()

    def _forget_rows(self) -> None:
        """Look rows up anew: keys or masks have changed."""
        self._rows.clear()
        self._touched.clear()

    # ---- training --------------------------------------------------------------------------

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """Batches of row numbers; none in rounds that only count."""
        self.model.backbone.eval()
        if phase(down) == "values":
            rows = self._rows_of(shard, down)
            looked_up = Shard(
                inputs=rows, targets=shard.targets, tasks=shard.tasks, indices=shard.indices
            )
            yield from super().batches(looked_up, down, state, rng)

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy of the votes, with label smoothing."""
        del model, down, state
        logits = self.head.decode(batch.inputs)
        logits = mask_logits(logits, batch.tasks, self.scenario.task_classes)
        return functional.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Votes of the nearest pairs, by default among those that training has fetched."""
        del down, state
        rows = self.head.rows(model.features(batch.inputs), only_used=self.head.lookup.only_used)
        logits = self.head.decode(rows)
        return mask_logits(logits, batch.tasks, self.scenario.task_classes)

    def train_cohort(
        self, downs: Sequence[Download], states: Sequence[ClientState]
    ) -> list[Upload]:
        """One round of several clients, their values at once where that is possible."""
        if self._reason is not None:
            return super().train_cohort(downs, states)
        return train_cohort(self, downs, states)

    def touched(self, shard: Shard, down: Download) -> Touched:
        """The rows that the shard's examples fetch, numbered anew once per look-up."""
        key = self._trainee(down), down.tick.experience
        if key not in self._touched:
            self._touched[key] = Touched.of(self._rows_of(shard, down))
        return self._touched[key]

    def rate(self, down: Download) -> float:
        """The learning rate of plain gradient descent in this round."""
        optimizer = self.training.optimizer([self.head.values])
        return float(optimizer.param_groups[0]["lr"]) * self._rate_factor(down)

    # ---- what goes out ---------------------------------------------------------------------

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """Touched rows; in key rounds sums over cells; for unlearning how often rows were fetched.

        ``rows`` holds ``indices [m]``, ``deltas [m, v]`` and ``counts [m]``; ``cells`` holds
        ``indices [m]``, ``counts [m]``, ``sums [m, q]`` and ``squares [m, q]``; ``fetched`` holds
        ``indices [m]`` and ``counts [m]``.
        """
        del model, state
        purpose = phase(down)
        if purpose == "keys":
            return {"cells": self._cells(shard, down)}
        if purpose == "unlearn":
            return {"fetched": self._fetched(down, int(down.config["unlearn-class"]))}
        head, received = self.head, down.records["values"]
        counts = fetch_counts(self._rows_of(shard, down), head.num_rows) * self.training.epochs
        indices = counts.nonzero().flatten()
        before = overlay(self._start.cpu(), received["indices"], received["values"], indices.cpu())
        deltas = head.values.detach()[indices].cpu() - before
        records: Records = {
            "rows": {"indices": indices.cpu(), "deltas": deltas, "counts": counts[indices].cpu()}
        }
        if head.decoder is not None and head.readout.train_decoder:
            records["decoder"] = {n: t.clone() for n, t in head.decoder.state_dict().items()}
        return records

    def _cells(self, shard: Shard, down: Download) -> Params:
        """Sums of the client's heads over the cells of the keys, without empty cells."""
        shards = [shard] if self._key_data == "current" else self._own_shards(down)
        total: Cells | None = None
        for part in shards:
            features = self._features(part.inputs)
            for i in range(0, len(features), FEATURE_BATCH):
                heads = self.head.heads(features[i : i + FEATURE_BATCH])
                cells = assign(heads, self.head.keys)
                total = cells if total is None else total + cells
        if total is None:
            raise ValueError("a client without examples was asked for its cells")
        size = total.sums.shape[-1]
        indices = total.counts.flatten().nonzero().flatten()
        return {
            "indices": indices.cpu(),
            "counts": total.counts.flatten()[indices].cpu(),
            "sums": total.sums.view(-1, size)[indices].cpu(),
            "squares": total.squares.view(-1, size)[indices].cpu(),
        }

    def _fetched(self, down: Download, label: int) -> Params:
        """How often the client's training examples of a class fetch every row."""
        counts = torch.zeros(self.head.num_rows, dtype=torch.int64)
        for part in self._own_shards(down):
            chosen = part.inputs[part.targets == label]
            if len(chosen):
                rows = self.head.rows(self._features(chosen))
                counts += fetch_counts(rows, self.head.num_rows).cpu()
        indices = counts.nonzero().flatten()
        return {"indices": indices, "counts": counts[indices]}

    def _own_shards(self, down: Download) -> list[Shard]:
        """The client's training data of all experiences, empty ones left out."""
        shards = [
            self.scenario.shard(down.client_id, experience, "train")
            for experience in range(self.scenario.num_experiences)
        ]
        return [part for part in shards if len(part)]

    def _rows_of(self, shard: Shard, down: Download) -> Tensor:
        """Rows that the shard's examples fetch, looked up once per keys and masks."""
        key = self._trainee(down), down.tick.experience
        if key not in self._rows:
            self._rows[key] = self.head.rows(self._features(shard.inputs)).cpu()
        return self._rows[key]

    @torch.no_grad()
    def _features(self, inputs: Tensor) -> Tensor:
        """What the frozen backbone makes of the inputs, ``[n, d]``."""
        parts = [
            self.model.features(inputs[i : i + FEATURE_BATCH].to(self.setting.device))
            for i in range(0, len(inputs), FEATURE_BATCH)
        ]
        return torch.cat(parts)
