"""Federated averaging that shares class prototypes besides the weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Form, class_sums, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.functional.prototypes import Statistics, class_means, merge
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Weights and prototypes.

    Attributes:
        arrays: The global model.
        classes: Class ids, ascending, ``[k]``.
        means: Their prototypes, ``[k, d]``.
    """

    arrays: Params
    classes: Tensor
    means: Tensor


class FedProto(Strategy[Shared]):
    """Averages the models by examples, and the embeddings of every class over all clients.

    A class that somebody had data of in the round gets the mean of the embeddings of this round,
    mixed with its old prototype: ``p_c <- momentum * p_c + (1 - momentum) * S_c / N_c``. Classes
    that nobody had keep theirs, made by an older encoder.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        momentum: Weight of the old prototype, in ``[0, 1)``.

    Raises:
        ValueError: If ``momentum`` is out of range.

    Source:
        Tan et al., FedProto, AAAI 2022, arXiv:2105.00243. Deviation: the weights are averaged too.
    """

    def __init__(
        self, *, sampler: Sampler, evaluation_sampler: Sampler, momentum: float = 0.0
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"strategy.momentum must lie in [0, 1), got {momentum}")
        self._momentum = momentum
        self._payload: tuple[Shared | None, Records] = None, {}

    def init(self, params: Params) -> Shared:
        """The initial model, and no prototype."""
        return Shared(
            arrays=params, classes=torch.empty(0, dtype=torch.int64), means=torch.empty(0, 0)
        )

    def payload(self, tick: Tick, state: Shared, client_id: int | None) -> Records:
        """Records ``arrays`` and ``prototypes`` (``classes`` ``[k]``, ``means`` ``[k, d]``)."""
        del tick, client_id
        if self._payload[0] is not state:
            table = {"classes": state.classes, "means": state.means}
            self._payload = state, {"arrays": state.arrays, "prototypes": table}
        return self._payload[1]

    def aggregate(self, tick: Tick, state: Shared, uploads: Iterable[Upload]) -> Shared:
        """Averaged weights and refreshed prototypes."""
        del tick
        parts: list[Statistics] = []

        def models() -> Iterator[tuple[float, Params]]:
            for upload in uploads:
                parts.append(Statistics(**upload.records["statistics"]))
                yield upload.num_examples, upload.records["arrays"]

        arrays = weighted_mean(models())
        merged = merge(parts)
        classes, means = self._refreshed(state, merged.classes, class_means(merged).float())
        return Shared(arrays=arrays, classes=classes, means=means)

    def expects(self, tick: Tick, state: Shared, upload: Upload) -> Sequence[Form]:
        """A model, and sums of embeddings as wide as the prototypes are."""
        del tick, upload
        width = state.means.shape[1] if len(state.classes) else "D"
        return [
            Form(
                records={
                    "arrays": fields_of(state.arrays),
                    "statistics": class_sums(width, self.num_classes),
                }
            )
        ]

    def shared(self, state: Shared) -> Params:
        """The global model."""
        return state.arrays

    def measures(self, state: Shared) -> dict[str, float]:
        """How many classes have a prototype."""
        return {"known_classes": float(len(state.classes))}

    def _refreshed(self, state: Shared, classes: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """The table with new rows for the given classes."""
        if len(state.classes) == 0:
            return classes, means
        known = torch.isin(classes, state.classes)
        rows = torch.searchsorted(state.classes, classes[known])
        means = means.clone()
        means[known] = self._momentum * state.means[rows] + (1 - self._momentum) * means[known]
        kept = ~torch.isin(state.classes, classes)
        all_classes = torch.cat([state.classes[kept], classes])
        order = all_classes.argsort()
        return all_classes[order], torch.cat([state.means[kept], means])[order]
