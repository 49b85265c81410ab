"""Small real parts for tests of the core."""

from functools import partial

import torch

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.training import LocalTraining
from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.toy import toy

NUM_CLIENTS = 4


def small_setting(
    *,
    num_clients=NUM_CLIENTS,
    num_experiences=2,
    rounds=2,
    seed=0,
    clock=None,
    shape=(6,),
    backbone=Flatten,
):
    """Four classes in two experiences, sixteen examples a client, a linear model."""
    scenario = ClassIncremental(
        dataset=toy(num_classes=4, shape=shape, train_examples=16 * num_clients, test_examples=40),
        partition=IID(),
        order=SameOrder(),
        num_clients=num_clients,
        num_experiences=num_experiences,
        class_order="sorted",
        classes_per_experience=None,
        seed=seed,
    )
    return Setting(
        scenario=scenario,
        clock=clock or Clock(num_experiences=num_experiences, rounds_per_experience=rounds),
        model=lambda: Model(backbone(input_shape=shape), 4),
        seed=seed,
    )


def small_training(**options):
    """Plain gradient descent with a rate of a tenth."""
    optimizer = options.pop("optimizer", partial(torch.optim.SGD, lr=0.1))
    return LocalTraining(optimizer=optimizer, **{"batch_size": 4, **options})


def small_client(setting=None, kind=SGD, training=None, **options):
    """A client of the given kind."""
    return kind(setting or small_setting(), training=training or small_training(), **options)


def first_arrays(setting):
    """The untrained model."""
    return to_record(dict(initial_model(setting).state_dict()))


def small_loop(strategy, client, *, grid=None, evaluator=None):
    """The round loop over an in-process grid."""
    setting = client.setting
    if grid is None:
        grid = LocalGrid(
            client_app_of(lambda _: client), setting.scenario.num_clients, raise_errors=True
        )
    return Loop(
        strategy=strategy,
        grid=grid,
        roster=grid.roster,
        clock=setting.clock,
        seed=setting.seed,
        evaluator=evaluator,
    )
