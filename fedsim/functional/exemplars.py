"""Exemplars: which examples stand for a class, and what old classes should still score."""

import torch
from torch import Tensor
from torch.nn import functional


def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all rows, chosen one by one.

    Args:
        features: ``[n, d]``.
        count: Rows to choose; all are chosen if there are fewer.

    Returns:
        Row numbers in the order of choice, ``[min(count, n)]``; any beginning of them is what
        fewer would have been.

    Source:
        Rebuffi et al., iCaRL, CVPR 2017, arXiv:1611.07725, algorithm 4.
    """
    target = features.mean(0)
    total = torch.zeros_like(target)
    free = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for number in range(1, min(count, len(features)) + 1):
        gaps = ((total + features) / number - target).square().sum(1)
        row = int(gaps.masked_fill(~free, torch.inf).argmin())
        chosen.append(row)
        free[row] = False
        total = total + features[row]
    return torch.tensor(chosen, dtype=torch.int64)


def distillation(logits: Tensor, old_logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(old / T) || softmax(new / T))`` over the old classes, a scalar.

    Args:
        logits: Of the model in training, ``[n, K]``.
        old_logits: Of the model before, ``[n, K]``; detached here.
        old: Class ids that the old model knows, ``[k]``; zero is returned for none.
        temperature: ``T``, positive.

    Source:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """
    if len(old) == 0:
        return logits.sum() * 0.0
    ours = functional.log_softmax(logits[:, old] / temperature, dim=1)
    theirs = functional.softmax(old_logits[:, old].detach() / temperature, dim=1)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean")
