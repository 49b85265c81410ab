"""Class prototypes as additive statistics: a mission teaches a client one sum a class."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clients.prototypes_table import joined, overlaid
from fedsim.arrays import Params, Records
from fedsim.client import Client, Setting
from fedsim.data import Batch, Shard
from fedsim.fieldtest import FieldTest, Scorer, costs
from fedsim.functional.prototypes import (
    METRICS,
    Metric,
    Statistics,
    class_statistics,
    clip_rows,
    open_scores,
    prototype_scores,
    second_moment,
    shared_precision,
)
from fedsim.model import Model
from fedsim.seeding import generator
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download, Metrics, Upload

ENCODE_BATCH = 256
TABLE, MOMENTS = "prototypes", "moments"  # records of what the server knows


class Prototypes(Client):
    """Sums the embeddings of every class of its mission; predicts by the nearest class mean.

    There is no gradient: the encoder is the model's backbone, in evaluation mode, and is never
    changed nor sent. A mission is reported once, under its number, as one row per class: class id,
    sum of the embeddings and count. The copy of the server's table that the client keeps is
    brought up to date by the rows that come in, so the server sends only what changed.

    Args:
        setting: What all clients share.
        training: Of the other methods; nothing is trained here.
        metric: ``euclidean``, ``cosine`` or ``mahalanobis`` (covariance shared by all classes, from
            additive second moments, which are sent once per mission).
        shrinkage: Of the covariance, in ``(0, 1]``; see :func:`shared_precision`. Only for
            ``mahalanobis``.
        clip_norm: Largest norm of an embedding before it is summed, or None.
        noise: Standard deviation of Gaussian noise on every entry of a sum, in units of
            ``clip_norm``; ``0`` for none. Not for ``mahalanobis``, whose second moments would be
            sent without it.
        min_count: Classes with fewer examples in the mission are not sent.

    Raises:
        ValueError: If a value is out of range or two of them do not fit.

    Source:
        Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150. Deviation: clients send
        the statistics of the mission alone; the authors' code sends cumulative means, which count
        old examples twice. Noise and clipping are not in the paper.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        training: LocalTraining,
        metric: Metric = "euclidean",
        shrinkage: float | None = None,
        clip_norm: float | None = None,
        noise: float = 0.0,
        min_count: int = 1,
    ) -> None:
        super().__init__(setting, training=training)
        if metric not in METRICS:
            raise ValueError(f"client.metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if (metric == "mahalanobis") != (shrinkage is not None):
            raise ValueError(
                "client.shrinkage belongs to metric mahalanobis; got metric"
                f" {metric}, shrinkage {shrinkage}"
            )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"client.clip_norm must be positive or null, got {clip_norm}")
        if noise < 0 or (noise > 0 and clip_norm is None):
            raise ValueError(f"client.noise must be 0, or positive with a clip_norm; got {noise}")
        if noise > 0 and metric == "mahalanobis":
            raise ValueError(
                "client.noise goes with metric euclidean or cosine: the second moments of"
                " mahalanobis would be sent without noise"
            )
        if min_count < 1:
            raise ValueError(f"client.min_count must be at least 1, got {min_count}")
        self._metric: Metric = metric
        self._shrinkage = shrinkage
        self._clip_norm, self._noise, self._min_count = clip_norm, noise, min_count
        self._table: Params = {}  # what the client at hand predicts with
        self._precision: Tensor | None = None
        self._overlay: tuple[tuple[int, int], Params, Params, Params] | None = None
        self.model.eval()  # for good: nothing here ever trains it
        self._field_test = FieldTest(self.scenario)
        self._test_embeddings: Tensor | None = None
        self._embedded: dict[int, tuple[Shard, Tensor]] = {}  # of clients that train together

    # ---- the course ------------------------------------------------------------------------

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """Bring the client's copy of the table up to date."""
        del model
        table = self._updated(state.get(TABLE, {}), down.records[TABLE])
        if down.client_id is not None and down.records[TABLE]["classes"].numel():
            state[TABLE] = table
        self._adopt(table, down.records.get(MOMENTS))

    def train(self, down: Download, state: ClientState) -> Upload:
        """Report the mission, unless it was reported and merged before."""
        client_id, position = self._trainee(down), down.tick.experience
        start = time.perf_counter()
        self.load(self.model, down, state)
        merged = int(down.records["merged"]["position"]) if "merged" in down.records else -1
        shard = None if position <= merged else self._shard(client_id, position)
        if shard is None or len(shard) == 0:
            return Upload(client_id=client_id, num_examples=0, records={})
        records = self.upload(self.model, shard, down, state)
        own, seconds = records["statistics"], time.perf_counter() - start
        metrics: Metrics = {}
        if self.scenario.evaluation_points:
            metrics |= costs(down.records, records, seconds, len(own["classes"]))
            if self._mission_is_evaluated(down):
                scorer = self._field_scorer(joined(self._table, own))
                metrics |= self._field_test.before(scorer, self._table["classes"], own["classes"])
        if self.tests_in_training(down):
            metrics |= self.measure(down, state)
        return Upload(
            client_id=client_id, num_examples=len(shard), records=records, metrics=metrics
        )

    def train_cohort(
        self, downs: Sequence[Download], states: Sequence[ClientState]
    ) -> list[Upload]:
        """Missions of several clients, whose examples pass the encoder together."""
        self.setting.prefetch(downs[0].tick.round, [self._trainee(down) for down in downs])
        places = [(self._trainee(down), down.tick.experience) for down in downs]
        shards = [self._shard(*place) for place in places if place[1] >= 0]
        self._embedded = self._embed_each([shard for shard in shards if len(shard)])
        try:
            return super().train_cohort(downs, states)
        finally:
            self._embedded = {}

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """Record ``statistics``: ``classes`` ``[k]``, ``sums`` ``[k, d]``, ``counts`` ``[k]``."""
        del model, state
        embeddings = self._embed(shard)
        if self._clip_norm is not None:
            embeddings = clip_rows(embeddings, self._clip_norm)
        statistics = self._guarded(class_statistics(embeddings, shard.targets), down)
        records = {
            "statistics": {
                "classes": statistics.classes,
                "sums": statistics.sums,
                "counts": statistics.counts.to(torch.int32),
                "mission": torch.tensor(down.tick.experience),
            }
        }
        if self._metric == "mahalanobis":
            kept = torch.isin(shard.targets, statistics.classes)
            records[MOMENTS] = {"outer": second_moment(embeddings[kept])}
        return records

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Nearness of every known class, ``[n, K]``; minus infinity for the others."""
        del down, state
        return self._nearness(model.features(batch.inputs), self._table)

    def after_merge(self, down: Download, state: ClientState) -> Metrics:
        """See :meth:`Client.after_merge`; known are the classes of the table."""
        del down, state
        table = self._table
        return {**self._field_test.after(self._field_scorer(table), table["classes"])}

    # ---- parts -----------------------------------------------------------------------------

    def _mission_is_evaluated(self, down: Download) -> bool:
        """Whether a round from this one to the mission's last is evaluated.

        The merge is in this round, so that later ones have no copy from before it to test.
        """
        clock, tick = self.setting.clock, down.tick
        while not clock.evaluates(tick.round):
            if tick.is_last:
                return False
            tick = clock.at(tick.round + 1, down.client_id)
        return True

    @torch.no_grad()
    def _embed_each(self, shards: Sequence[Shard]) -> dict[int, tuple[Shard, Tensor]]:
        """Embeddings of several shards, by the shard's id; without graphs and large ones."""
        embedded: dict[int, tuple[Shard, Tensor]] = {}  # the shard is kept, so that its id is too
        plain = [shard for shard in shards if isinstance(shard.inputs, Tensor)]
        small = iter([shard for shard in plain if len(shard) <= ENCODE_BATCH])
        while part := _together(small, ENCODE_BATCH):
            inputs = torch.cat([shard.inputs for shard in part])
            features = self.model.features(inputs.to(self.setting.device)).cpu()
            rows = torch.split(features, [len(shard) for shard in part])
            embedded |= {id(s): (s, row) for s, row in zip(part, rows, strict=True)}
        return embedded

    @torch.no_grad()
    def _embed(self, shard: Shard) -> Tensor:
        if id(shard) in self._embedded:
            return self._embedded[id(shard)][1]
        device = self.setting.device
        if len(shard) <= ENCODE_BATCH:
            return self.model.features(shard.inputs.to(device)).cpu()
        parts = [
            self.model.features(batch.inputs.to(device)).cpu()
            for batch in shard.batches(ENCODE_BATCH)
        ]
        return torch.cat(parts)

    def _guarded(self, statistics: Statistics, down: Download) -> Statistics:
        """Without classes that are too small, and with noise."""
        if self._min_count > 1:
            enough = statistics.counts >= self._min_count
            statistics = Statistics(*(part[enough] for part in statistics))
        if self._noise == 0.0 or self._clip_norm is None:
            return statistics
        path = (self.setting.seed, "privacy", down.tick.experience, self._trainee(down))
        noise = torch.randn(statistics.sums.shape, generator=generator(*path))
        return statistics._replace(sums=statistics.sums + self._noise * self._clip_norm * noise)

    def _updated(self, held: Params, rows: Params) -> Params:
        """The table with the rows that came, made once for all clients that hold the same."""
        if not held or len(held["classes"]) == 0 or len(rows["classes"]) == 0:
            return overlaid(held, rows)
        key = held["means"].data_ptr(), rows["means"].data_ptr()
        if self._overlay is None or self._overlay[0] != key:  # both are kept, so memory stays taken
            self._overlay = key, held, rows, overlaid(held, rows)
        return self._overlay[3]

    def _adopt(self, table: Params, moments: Params | None) -> None:
        self._table = table
        self._precision = None
        if self._metric == "mahalanobis" and len(table["classes"]) and moments is not None:
            counts = table["counts"].double()
            sums = table["means"].double() * counts.unsqueeze(1)
            statistics = Statistics(table["classes"], sums, counts)
            precision = shared_precision(
                moments["outer"].double(), statistics, self._shrinkage or 1.0
            )
            self._precision = precision.float()

    def _nearness(self, embeddings: Tensor, table: Params) -> Tensor:
        classes = self.scenario.num_classes
        if len(table["classes"]) == 0:
            return embeddings.new_full((len(embeddings), classes), -torch.inf)
        means = table["means"].to(embeddings.device)
        metric = self._metric
        if metric == "mahalanobis" and self._precision is None:
            metric = "euclidean"  # before anybody has sent a second moment
        scores = prototype_scores(embeddings, means, metric, self._precision)
        return open_scores(scores, table["classes"], classes)

    def _field_scorer(self, table: Params) -> Scorer:
        """Nearness by a table, on test data that are embedded once."""
        if self._test_embeddings is None:
            everything = np.arange(len(self.scenario.targets("test")))
            self._test_embeddings = self._embed(self.scenario.build(everything, 0, "test"))
        embeddings = self._test_embeddings
        return lambda rows: self._nearness(embeddings[torch.from_numpy(rows)], table)


def _together(shards: Iterator[Shard], examples: int) -> list[Shard]:
    """The next shards, until they hold so many examples."""
    part: list[Shard] = []
    while sum(map(len, part)) < examples and (shard := next(shards, None)) is not None:
        part.append(shard)
    return part
