"""Avalanche plugins that need a correction to work; importing this module imports Avalanche."""

from typing import Any

from avalanche.training.plugins import SynapticIntelligencePlugin


class SynapticIntelligence(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Avalanche's synaptic intelligence, with weights that are copied when they are remembered.

    Avalanche 0.6 remembers ``parameter.detach().cpu().flatten()``. For a model on the CPU that is
    a view of the live weight, so every remembered weight follows the model, all differences are
    zero and the method does nothing: a run equals naive training for any ``si_lambda``. On a GPU
    the transfer copies, and this class then equals the original.

    Args:
        si_lambda: Strength of the penalty; a list gives one value per experience.
        eps: Damping of the importance, see the paper.
        excluded_parameters: Names (or patterns) of parameters that are left free.

    Source:
        Zenke et al., Continual Learning Through Synaptic Intelligence, ICML 2017, arXiv:1703.04200.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights at which the experience begins."""
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights before the step."""
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Add the step to the path integral."""
        super().after_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["new_theta"])
        _copy(self.syn_data["grad"])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Turn the path integral into importances."""
        super().after_training_exp(strategy, **kwargs)
        _copy(self.syn_data["new_theta"])


def _copy(remembered: dict[str, Any]) -> None:
    """Detach remembered values from the tensors they may be views of."""
    for value in remembered.values():
        value.data = value.data.clone()
