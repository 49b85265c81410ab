"""From a resolved configuration to the objects it names."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import Parameter

from fedsim.arguments import check_arguments
from fedsim.checks import ConfigError, Node
from fedsim.client import Client, Setting, initial_model
from fedsim.cut import GraphCut
from fedsim.data import Dataset
from fedsim.model import Model
from fedsim.modes import in_mode
from fedsim.running import POLICIES, RunningStatistics, running_statistics
from fedsim.scenario import Scenario
from fedsim.simulation import Simulation, check_clock, check_evaluation
from fedsim.strategy import Strategy


def make(node: Node, name: str) -> Any:
    """Instantiate one part of the configuration.

    Raises:
        ConfigError: If the part refuses its arguments; the text names the part or the key.
    """
    try:
        with warnings.catch_warnings():
            # what PyTorch Geometric does to itself when it is imported is not the user's business
            warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)
            check_arguments(node, name)
            return instantiate(node[name], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError | OSError | ImportError | RuntimeError):
            raise ConfigError(f"{name}: {_first_cause(cause)}") from error
        if isinstance(cause, AttributeError | LookupError):  # a part of another kind was given
            words = f"{type(cause).__name__}: {cause}"
            raise ConfigError(f"{name}: {node[name].get('_target_')} raised {words}") from error
        raise


def build(node: Node) -> Simulation:
    """Everything a run consists of, from a configuration that :func:`fedsim.config.resolve` gave.

    What needs no data is built first, so that most mistakes show before any is loaded.
    """
    node = in_mode(node)
    torch.set_num_threads(1)  # more threads split sums differently: other bits on other machines
    torch.backends.cudnn.deterministic = True  # the fastest convolutions add up in any order
    clock = make(node, "clock")
    backbone = make(node, "backbone")
    head = make(node, "head")
    client = make(node, "client")
    strategy = make(node, "strategy")
    loggers = [make(node["logger"], name) for name in node["logger"] or {}]
    evaluation = make(node, "evaluation")
    gate, faults = make(node, "gate"), make(node, "faults")
    device = node["engine"]["device"]
    scenario: Scenario = make(node, "scenario")
    faults.check(is_graph=isinstance(scenario, GraphCut))
    scenario.flipped = faults.attackers("label_flip")
    if isinstance(strategy, Strategy):
        strategy.num_classes = scenario.num_classes
    try:
        check_clock(clock, scenario.num_experiences)
        check_evaluation(evaluation, scenario, strategy)
        setting = Setting(
            scenario=scenario,
            clock=clock,
            model=partial(_model, backbone, head, scenario),
            seed=node["seed"],
            device=device,
            evaluation=evaluation,
            faults=faults if faults.strikes_replies else None,
        )
        whole = isinstance(strategy, Strategy) and strategy.rebuilds_model
        setting = with_running(setting, node["batch_statistics"], whole=whole)
        made: Client = client(setting)
        check_optimizer(made)
        if isinstance(getattr(scenario, "dataset", None), Dataset):  # else a graph
            check_backbone(made.model, scenario.input_shape, device)
        return Simulation(
            setting=setting,
            client=made,
            strategy=strategy,
            server_evaluation=node["server_evaluation"],
            loggers=loggers,
            gate=gate,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def with_running(setting: Setting, policy: Any, *, whole: bool = False) -> Setting:
    """The setting with a policy for the running statistics of batch normalisation.

    Args:
        setting: The setting without.
        policy: What becomes of them.
        whole: Whether the server needs all of the model's tensors.

    Raises:
        ValueError: If the policy is unknown, or the model has no such statistics to keep.
    """
    if policy not in POLICIES:
        raise ValueError(f"batch_statistics must be {' or '.join(POLICIES)}, got {policy!r}")
    if policy == "average":
        return setting
    if whole:
        raise ValueError(
            f"batch_statistics={policy}, but this strategy trains the whole model at the server;"
            " use average"
        )
    initial = running_statistics(initial_model(setting))
    if not initial:
        raise ValueError(
            f"batch_statistics={policy}, but the model has no batch normalisation; use average"
        )
    return replace(setting, running=RunningStatistics(policy=policy, initial=initial))


def check_optimizer(client: Client) -> None:
    """Make an optimiser, so that it refuses its options before any work.

    Raises:
        ValueError: If it does.
    """
    try:
        client.training.optimizer([Parameter(torch.zeros(1))])
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"optimizer: {error}") from error
    if client.training.epochs == 0 and not client.overrides("train", "fit"):
        raise ValueError("training.epochs=0 would train nothing; give it at least 1")


@torch.no_grad()
def check_backbone(model: Model, input_shape: tuple[int, ...], device: str) -> None:
    """See to it that the backbone takes the data and gives as many features as it says.

    Args:
        model: Backbone and head; left in training mode.
        input_shape: Of one example.
        device: Where the model is.

    Raises:
        ValueError: If it does not; the text says what came in and out.
    """
    name = type(model.backbone).__name__
    model.eval()
    try:
        found = tuple(model.features(torch.zeros((2, *input_shape), device=device)).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the backbone ({name}) does not take inputs of shape {(2, *input_shape)}: {error}"
        ) from error
    finally:
        model.train()
    if found != (2, model.num_features):
        raise ValueError(
            f"the backbone ({name}) says num_features={model.num_features} and gives features of"
            f" shape {found} for two examples; expected {(2, model.num_features)}"
        )


def save_config(node: Mapping[str, Any], run_dir: Path) -> None:
    """Write ``config.yaml``, every value resolved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(dict(node)), run_dir / "config.yaml")


def _model(backbone: Any, head: Any, scenario: Scenario) -> Model:
    return Model(backbone(input_shape=scenario.input_shape), scenario.num_classes, head)


def _first_cause(error: BaseException) -> str:
    """The innermost message: what the constructor itself said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
