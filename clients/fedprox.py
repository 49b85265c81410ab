"""Local training that stays near the received model."""

from torch import Tensor

from fedsim.client import Client, Setting
from fedsim.data import Batch
from fedsim.functional.penalties import proximal
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class FedProx(Client):
    """Adds ``mu / 2 * ||w - w_received||^2`` to the loss.

    With ``mu = 0`` it is :class:`clients.sgd.SGD`. A strategy that sends ``proximal-mu``, as
    Flower's ``FedProx`` does, overrides ``mu``.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
        mu: Strength of the proximal term, at least 0.

    Raises:
        ValueError: If ``mu`` is negative.

    Source:
        Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv:1812.06127.
    """

    def __init__(self, setting: Setting, *, training: LocalTraining, mu: float) -> None:
        super().__init__(setting, training=training)
        if mu < 0:
            raise ValueError(f"client.mu must be 0 or more, got {mu}")
        self.mu = mu

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy and the proximal term."""
        loss = super().loss(model, batch, down, state)
        mu = float(down.config.get("proximal-mu", self.mu))
        if mu == 0.0:
            return loss
        anchor = down.records["arrays"]
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        received = [anchor[name].to(p.device) for name, p in named]
        return loss + mu * proximal([p for _, p in named], received)
