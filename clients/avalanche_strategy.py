"""Avalanche's strategy objects on a client's model, and which of them cannot work there."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fedsim.cut import GraphCut
from fedsim.model import Model
from fedsim.scenario import Scenario
from fedsim.training import LocalTraining


class Meter:
    """A plugin that clips gradients and sums up the loss; it remembers nothing between rounds.

    Args:
        clip_norm: Largest total gradient norm, or None.
    """

    def __init__(self, clip_norm: float | None) -> None:
        self._clip_norm = clip_norm
        self.total: Tensor | float = 0.0
        self.count = 0

    def start(self) -> None:
        """Forget what was summed up."""
        self.total, self.count = 0.0, 0

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Clip the gradients that the optimiser is about to use."""
        del kwargs
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(strategy.model.parameters(), self._clip_norm)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Add the batch's loss."""
        del kwargs
        self.total = self.total + strategy.loss.detach() * len(strategy.mb_y)
        self.count += len(strategy.mb_y)

    def mean(self) -> float:
        """Mean loss per example, NaN without any."""
        return float(self.total) / self.count if self.count else float("nan")


def build_strategy(
    strategy: Callable[..., Any], model: Model, training: LocalTraining, device: str
) -> Any:
    """The strategy object, on the model or on its backbone and head, without any logging.

    Args:
        strategy: A class of ``avalanche.training.supervised`` or a partial of one.
        model: The client's model.
        training: Optimiser, epochs, batch size.
        device: Where the model is.

    Raises:
        ValueError: If the strategy cannot work, with the reason.
    """
    if training.batch_size == 0:
        raise ValueError("Avalanche has no full batch: give training.batch_size a number")
    options: dict[str, Any] = {}
    cls: Any = strategy
    if isinstance(strategy, functools.partial):
        cls, options = strategy.func, copy.deepcopy(strategy.keywords)
    offered = {
        "model": model,
        "feature_extractor": model.backbone,
        "classifier": model.head,
        "optimizer": training.optimizer(list(model.parameters())),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": training.batch_size,
        "train_epochs": training.epochs,
        "train_passes": training.epochs,  # the name in the online strategies
        "eval_mb_size": training.batch_size,
        "device": device,
        "evaluator": None,
    }
    own = sorted(options.keys() & offered.keys() - {"criterion"})
    if own:
        raise ValueError(f"strategy.{own[0]} comes from the client; leave it out of the yaml")
    wanted = inspect.signature(cls).parameters
    if "model" not in wanted and "feature_extractor" not in wanted:
        raise ValueError(f"{cls.__name__} brings its own model, which no federation can share")
    given = {name: value for name, value in offered.items() if name in wanted}
    if "criterion" in wanted and wanted["criterion"].default is not inspect.Parameter.empty:
        # the strategy's own, but not the one object that all strategies of the process share
        given["criterion"] = copy.deepcopy(wanted["criterion"].default)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing will be logged is what we want
        built = cls(**{**given, **options})
    _check_course(built)
    for plugin in built.plugins:
        _check_plugin(plugin, built)
    return built


def _check_course(strategy: Any) -> None:
    """Refuse what is no strategy of Avalanche's, runs its own course or hides the model."""
    from avalanche.training.templates.base_sgd import BaseSGDTemplate

    name = type(strategy).__name__
    if not isinstance(strategy, BaseSGDTemplate):
        raise ValueError(f"strategy must build one of Avalanche's SGD strategies, got {name}")
    if type(strategy).train is not BaseSGDTemplate.train:
        raise ValueError(f"{name} trains over the whole stream at once, so it has no rounds")
    parts = ("feature_extractor", "train_classifier")
    if not isinstance(strategy.model, Model) and not all(hasattr(strategy.model, p) for p in parts):
        raise ValueError(
            f"{name} wraps the model in a {type(strategy.model).__name__}, from which the client"
            " cannot predict"
        )


def _check_plugin(plugin: Any, strategy: Any) -> None:
    """Refuse plugins that do not work inside a client."""
    from avalanche.models import BaseModel
    from avalanche.training import plugins

    if type(plugin) is plugins.SynapticIntelligencePlugin and strategy.device.type == "cpu":
        raise ValueError(
            "Avalanche's SynapticIntelligencePlugin does nothing on the CPU (its copies of the"
            " weights are views); use clients.avalanche_plugins.SynapticIntelligence"
        )
    if isinstance(plugin, plugins.MIRPlugin):
        raise ValueError(
            "MIRPlugin reads the last batch of an experience when it ends, which no client keeps"
            " between rounds"
        )
    if isinstance(plugin, plugins.BiCPlugin):
        raise ValueError(
            "BiCPlugin replaces the data set of an experience, which Avalanche 0.6's experiences"
            " do not allow"
        )
    if isinstance(plugin, plugins.LFLPlugin) and not isinstance(strategy.model, BaseModel):
        raise ValueError(
            "LFLPlugin needs a model with get_features (avalanche.models.BaseModel), got"
            f" {type(strategy.model).__name__}"
        )


def check_scenario(strategy: Any, scenario: Scenario) -> None:
    """Refuse scenarios that the strategy is not made for.

    Raises:
        ValueError: With the reason.
    """
    from avalanche.training.plugins import LwFPlugin
    from avalanche.training.supervised import ICaRL

    if isinstance(scenario, GraphCut):
        raise ValueError(
            "Avalanche's strategies take examples one by one, and nodes cannot be cut from their"
            " graph; use client=replay, ewc, fedprox or sgd"
        )
    tells_tasks = scenario.task_classes is not None
    if tells_tasks and any(isinstance(plugin, LwFPlugin) for plugin in strategy.plugins):
        raise ValueError(
            "with task labels Avalanche's LwF distils one head per task, but the model has one"
            " head for all; use a scenario that tells no task labels"
        )
    if isinstance(strategy, ICaRL):
        _check_new_classes(scenario)


def _check_new_classes(scenario: Scenario) -> None:
    """Refuse classes that come back."""
    seen: dict[int, int] = {}
    for experience in range(scenario.num_experiences):
        for label in scenario.classes(experience):
            if label in seen:
                raise ValueError(
                    f"ICaRL needs new classes in every experience, but class {label} occurs in"
                    f" experiences {seen[label]} and {experience}; use Replay or DER"
                )
            seen[label] = experience
