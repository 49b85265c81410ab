"""The bottleneck on an Avalanche stream, trained by Avalanche itself (method sheet, check 6)."""

import pytest
import torch
from torch import nn

from fedsim.backbones.encoders import identity
from fedsim.backbones.keyvalue_head import KeyValueHead
from fedsim.backbones.keyvalue_options import KeyFitting, Lookup, Readout
from fedsim.features import encoded
from scenarios.class_incremental import ClassIncremental
from scenarios.datasets import digits
from scenarios.order import SameOrder
from scenarios.partition import IID


def test_avalanches_naive_strategy_does_not_forget_with_this_head():
    training = pytest.importorskip("avalanche.training")
    data = encoded(dataset=digits(), encoder=identity)
    scenario = ClassIncremental(
        dataset=data,
        partition=IID(),
        order=SameOrder(),
        num_clients=1,
        num_experiences=5,
        class_order="sorted",
        seed=0,
    )
    lookup = Lookup(codebooks=64, pairs=256, key_size=8)
    head = KeyValueHead(64, 10, lookup=lookup, readout=Readout(), seed=0)
    head.fit_keys(data.train.inputs, KeyFitting())
    naive = training.Naive(
        model=head,
        optimizer=torch.optim.SGD(head.parameters(), lr=0.3),
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        train_mb_size=64,
        train_epochs=5,
        evaluator=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for experience in scenario.streams(0).train_stream:
            naive.train(experience)
    predicted = head.eval()(data.test.inputs).argmax(dim=1)
    accuracy = float((predicted == data.test.targets).float().mean())
    assert abs(accuracy - 0.97) <= 0.02
