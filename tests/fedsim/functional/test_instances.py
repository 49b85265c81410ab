import math

import pytest
import torch
from torch import tensor

from fedsim.functional.instances import balanced_bce, mean_average_precision


def test_the_present_class_weighs_as_much_as_all_classes():
    logits = torch.zeros(1, 4)
    loss = balanced_bce(logits, tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert float(loss) == pytest.approx((4 + 3) * math.log(2) / 4)
    two = balanced_bce(logits, tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert float(two) == pytest.approx((2 * 2 + 2) * math.log(2) / 4)


def test_average_precision_by_hand():
    scores = tensor([[0.9], [0.8], [0.7], [0.1]])
    present = tensor([[1.0], [0.0], [1.0], [0.0]])
    assert mean_average_precision(scores, present) == pytest.approx((1 + 2 / 3) / 2)
    unknown = torch.cat([present, torch.zeros(4, 1)], dim=1)
    assert mean_average_precision(scores.expand(4, 2), unknown) == pytest.approx(5 / 6)
