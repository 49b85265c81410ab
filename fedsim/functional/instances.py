"""Which classes occur in an image: loss and score of several labels at a time."""

import torch
from torch import Tensor
from torch.nn import functional


def balanced_bce(logits: Tensor, present: Tensor) -> Tensor:
    """Binary cross-entropy in which the few classes present weigh as much as the many absent.

    ``mean_{i,k} -w_i y log sigma(x) - (1 - y) log(1 - sigma(x))`` with ``w_i`` the number of
    classes over the number of them in image ``i``.

    Args:
        logits: ``[n, K]``.
        present: 0 or 1, ``[n, K]``.

    Source:
        Anderson and Farrell, Improving Fractal Pre-training, WACV 2022, arXiv:2110.03091.
    """
    positives = present.sum(dim=1, keepdim=True).clamp(min=1.0)
    weight = present.shape[1] / positives
    return functional.binary_cross_entropy_with_logits(
        logits, present, pos_weight=weight.expand_as(present)
    )


def mean_average_precision(scores: Tensor, present: Tensor) -> float:
    """Mean over classes of the precision at each image that shows the class, best score first.

    Args:
        scores: ``[n, K]``.
        present: 0 or 1, ``[n, K]``; classes that occur nowhere are left out.

    Returns:
        In ``[0, 1]``; a random order gives about the mean of ``present``.
    """
    hits = torch.gather(present, 0, scores.argsort(dim=0, descending=True))
    ranks = torch.arange(1, len(hits) + 1, dtype=hits.dtype)[:, None]
    precision = hits.cumsum(dim=0) / ranks
    number = hits.sum(dim=0)
    occurs = number > 0
    return float(((precision * hits).sum(dim=0)[occurs] / number[occurs]).mean())
