"""Accuracy on the test data of any set of classes, which no experience may hold as such."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Shard
from fedsim.scenario import Scenario


class FieldTest:
    """The test data of a scenario, embedded once by a frozen encoder.

    Inputs are taken as they look in experience 0, so the scenario must not change them over time.

    Args:
        scenario: Where the test data come from.
        embed: Embeddings of a shard, ``[n, d]``.
    """

    def __init__(self, scenario: Scenario, embed: Callable[[Shard], Tensor]) -> None:
        self._scenario = scenario
        self._embed = embed
        self._embeddings: Tensor | None = None

    @torch.no_grad()
    def accuracy(
        self,
        scorer: Callable[[Tensor], Tensor],
        classes: Tensor,
        *,
        among: Tensor | None = None,
    ) -> float:
        """Share of right predictions on the test data of the classes; NaN without any.

        Args:
            scorer: Maps embeddings ``[n, d]`` to scores ``[n, K]``.
            classes: Whose test data count.
            among: Candidates; None for all classes.
        """
        targets = self._scenario.targets("test")
        rows = torch.isin(targets, classes).nonzero().flatten()
        if len(rows) == 0:
            return float("nan")
        scores = scorer(self._all()[rows])
        if among is not None:
            open_to = torch.zeros(scores.shape[1], dtype=torch.bool)
            open_to[among] = True
            scores = scores.masked_fill(~open_to, -torch.inf)
        return float((scores.argmax(1) == targets[rows]).double().mean())

    def _all(self) -> Tensor:
        if self._embeddings is None:
            everything = np.arange(len(self._scenario.targets("test")))
            self._embeddings = self._embed(self._scenario.build(everything, 0, "test"))
        return self._embeddings
