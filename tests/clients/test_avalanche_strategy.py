"""Every Avalanche yaml works, and what cannot work is refused with the reason."""

import dataclasses
import logging
import threading
from functools import partial
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clients.avalanche import Avalanche
from fedsim.client import Client
from fedsim.state import ClientState
from scenarios.data_incremental import DataIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.task_incremental import TaskIncremental
from scenarios.toy import toy
from tests.clients import avalanche_case as case
from tests.clients.avalanche_case import TRAINING, setting

pytestmark = pytest.mark.filterwarnings("ignore")
CONF = Path(__file__).parents[2] / "conf" / "client"
YAMLS = sorted(path.stem for path in CONF.glob("avalanche_*.yaml"))


def supervised(name, **options):
    from avalanche.training import supervised as strategies

    return partial(getattr(strategies, name), **options)


def with_plugin(plugin):
    return supervised("Naive", plugins=[plugin])


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_trains_over_a_boundary_and_evaluates(name):
    choice = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert choice.pop("needs") == []
    assert choice.pop("training") == "${training}"
    settings = setting(rounds=2)
    one: Client = instantiate(choice, _convert_="all")(settings, training=TRAINING)
    uploads, state = case.run(lambda round_: one, settings, [1, 2, 3, 5])
    down = case.download(settings, 5, uploads[-1])
    accuracy = one.evaluate(down, state).metrics["accuracy"]
    assert len(accuracy) == 3
    assert all(0.0 <= a <= 1.0 for a in accuracy)


def test_there_is_a_yaml_for_every_tested_method_of_the_library():
    assert len(YAMLS) >= 17


def scenario(cls):
    return cls(
        dataset=toy(num_classes=6, shape=[4], train_examples=60, test_examples=24),
        partition=IID(),
        order=SameOrder(),
        num_clients=1,
        num_experiences=3,
        seed=0,
    )


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("SynapticIntelligence", {"si_lambda": 1.0}, "does nothing on the CPU"),
        ("MIR", {"batch_size_mem": 5, "mem_size": 9, "subsample": 9}, "reads the last batch"),
        ("BiC", {"mem_size": 10}, "replaces the data set"),
        ("LFL", {"lambda_e": 1.0}, "needs a model with get_features"),
        ("JointTraining", {}, "over the whole stream at once"),
        ("StreamingLDA", {"input_size": 4, "num_classes": 6}, "brings its own model"),
        ("AR1", {}, "brings its own model"),
        ("Naive", {"train_epochs": 3}, "strategy.train_epochs comes from the client"),
    ],
)
def test_what_cannot_work_is_refused_at_start(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        Avalanche(setting(), training=TRAINING, strategy=supervised(name, **options))


def test_icarl_is_refused_where_classes_come_back():
    options = {"memory_size": 8, "buffer_transform": None, "fixed_memory": True}
    settings = setting(scenario=scenario(DataIncremental))
    with pytest.raises(ValueError, match=r"class 0 occurs in experiences 0 and 1; use Replay"):
        Avalanche(settings, training=TRAINING, strategy=supervised("ICaRL", **options))


def test_lwf_is_refused_where_task_labels_are_told():
    settings = setting(scenario=scenario(TaskIncremental))
    with pytest.raises(ValueError, match="one head per task"):
        Avalanche(settings, training=TRAINING, strategy=case.strategy("lwf"))


@pytest.mark.parametrize("name", ["ewc", "replay-balanced", "der"])
def test_other_methods_take_task_labels(name):
    settings = setting(scenario=scenario(TaskIncremental))
    one = Avalanche(settings, training=TRAINING, strategy=case.strategy(name))
    uploads, state = case.run(lambda round_: one, settings, [1, 2, 3])
    evaluated = one.evaluate(case.download(settings, 3, uploads[-1]), state)
    assert min(evaluated.metrics["accuracy"]) >= 0.25  # two classes each, so chance is a half


def test_a_full_batch_is_refused():
    whole = dataclasses.replace(TRAINING, batch_size=0)
    with pytest.raises(ValueError, match="Avalanche has no full batch"):
        Avalanche(setting(), training=whole, strategy=case.strategy("naive"))


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="one of Avalanche's SGD strategies, got Odd"):
        Avalanche(setting(), training=TRAINING, strategy=Odd)


class Odd:
    def __init__(self, model):
        self.model = model
        self.plugins = []


class Locked:
    """A plugin with something that cannot be stored from the beginning."""

    def __init__(self):
        self.lock = threading.Lock()


class Late:
    """A plugin that gets something that cannot be stored while it trains."""

    def __init__(self, make):
        self.make = make
        self.held = None

    def after_training_epoch(self, strategy, **kwargs):
        self.held = self.make(strategy)


def test_a_memory_that_cannot_be_stored_is_refused_at_start_by_name():
    naive = supervised("Naive")

    def locked(*, model, optimizer, evaluator):
        return naive(model=model, optimizer=optimizer, evaluator=evaluator, plugins=[Locked()])

    with pytest.raises(TypeError, match=r"\(Locked\)\.lock: a _thread\.lock cannot be kept"):
        Avalanche(setting(), training=TRAINING, strategy=locked)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda strategy: threading.Lock(), "a _thread.lock cannot be kept"),
        (lambda strategy: lambda: 0, "a builtins.function cannot be kept"),
        (lambda strategy: strategy.loss, "tensor with its autograd graph"),
        (lambda strategy: strategy.model.head.weight.detach(), "view of the model's own weights"),
        (lambda strategy: strategy.optimizer, "SGD cannot be kept"),
        (lambda strategy: __import__("torch").nn.Linear(2, 2), "another architecture"),
    ],
)
def test_a_memory_that_cannot_be_stored_later_stops_the_run(make, reason):
    settings = setting()
    one = Avalanche(settings, training=TRAINING, strategy=with_plugin(Late(make)))
    with pytest.raises(TypeError, match=rf"Naive.plugins\[1\] \(Late\)\.held: .*{reason}"):
        one.train(case.download(settings, 1, case.start(settings)), ClientState())


def test_loggers_and_functions_of_a_constructor_are_kept_by_name():
    settings = setting()
    plugin = Late(lambda strategy: strategy.clock.train_iterations)
    plugin.log = logging.getLogger("fedsim-test")
    one = Avalanche(settings, training=TRAINING, strategy=with_plugin(plugin))
    case.run(lambda round_: one, settings, [1, 2])
    kept = one._strategy.plugins[1]
    assert kept.held == 16
    assert kept.log is logging.getLogger("fedsim-test")
