"""The bottleneck on an Avalanche stream, by Avalanche itself, beside its own methods (check 6)."""

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


@pytest.fixture(scope="module")
def data():
    return encoded(dataset=digits(), encoder=identity)


def stream(data):
    scenario = ClassIncremental(
        dataset=data,
        partition=IID(),
        order=SameOrder(),
        num_clients=1,
        num_experiences=5,
        class_order="sorted",
        seed=0,
    )
    return scenario.streams(0).train_stream


def accuracy(model, data):
    predicted = model.eval()(data.test.inputs).argmax(dim=1)
    return float((predicted == data.test.targets).float().mean())


def test_avalanches_naive_strategy_does_not_forget_with_this_head(data):
    training = pytest.importorskip("avalanche.training")
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
        for experience in stream(data):
            naive.train(experience)
    assert abs(accuracy(head, data) - 0.97) <= 0.02


def test_streaming_lda_runs_beside_it_on_the_same_stream_of_features(data):
    training = pytest.importorskip("avalanche.training")
    slda = training.StreamingLDA(
        slda_model=nn.Identity(),
        criterion=nn.CrossEntropyLoss(),
        input_size=64,
        num_classes=10,
        evaluator=None,
    )
    for experience in stream(data):
        slda.train(experience)
    predicted = slda.predict(data.test.inputs).argmax(dim=1)
    assert 0.90 <= float((predicted == data.test.targets).float().mean()) < 0.97
