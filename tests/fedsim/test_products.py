"""Our count of multiplications against torch's own."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.backbones.vision import MLP, LeNet
from fedsim.products import counted

IMAGE = torch.zeros(2, 4, 9, 9)
CASES = {
    "convolution": (nn.Conv2d(4, 6, 3, stride=2, padding=1), IMAGE),
    "groups": (nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), IMAGE),
    "linear": (nn.Linear(9, 5, bias=False), IMAGE),
    "lenet": (LeNet(input_shape=(1, 16, 16)), torch.zeros(3, 1, 16, 16)),
    "mlp": (MLP(input_shape=(8,), hidden=[5, 6]), torch.zeros(7, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_count_is_torchs(name):
    model, inputs = CASES[name]
    with FlopCounterMode(display=False) as theirs:
        model(inputs)
    with counted(model) as ours:
        model(inputs)
    assert ours.count == theirs.get_total_flops() / 2 > 0
    assert ours.convolves == (name not in ("linear", "mlp"))


def test_nothing_stays_on_the_model():
    model = nn.Linear(2, 3)
    with counted(model) as ours:
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert ours.count == 6
    assert not model._forward_hooks


COUNTING = """
import sys, torch
from fedsim.products import counted
model = torch.nn.Linear(2, 3)
with counted(model):
    model(torch.zeros(1, 2))
assert "triton" not in sys.modules
assert "torch._dynamo" not in sys.modules
"""


def test_no_compiler_is_loaded():
    subprocess.run([sys.executable, "-c", COUNTING], check=True)
