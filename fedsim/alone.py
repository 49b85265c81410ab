"""Clients without a federation: the lower bound of federated learning."""

from collections.abc import Callable
from dataclasses import replace

from fedsim.client import Client, Setting
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

_OWN = "own_model"


class Alone(Client):
    """Any client that exchanges its whole model, kept from exchanging it.

    What it would have uploaded is what it finds in its next download. All clients start from the
    run's initial model.

    Args:
        setting: What all clients share.
        client: Builds the client from the setting.
    """

    def __init__(self, setting: Setting, *, client: Callable[[Setting], Client]) -> None:
        inner = client(setting)
        super().__init__(setting, training=inner.training)
        self._inner = inner
        self._start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def train(self, down: Download, state: ClientState) -> Upload:
        """One round of one client, on the model it has.

        Raises:
            ValueError: If the client sends something else than its model.
        """
        upload = self._inner.train(self._own(down, state), state)
        if upload.records.keys() - {"arrays"}:
            raise ValueError(
                "mode=local takes clients that send their whole model (record 'arrays') and nothing"
                f" else; this one sends {', '.join(sorted(upload.records))}"
            )
        if "arrays" in upload.records:
            state[_OWN] = upload.records["arrays"]
        return replace(upload, records={})

    def evaluate(self, down: Download, state: ClientState) -> Upload:
        """See :meth:`Client.evaluate`, of the model it has."""
        return self._inner.evaluate(self._own(down, state), state)

    def _own(self, down: Download, state: ClientState) -> Download:
        return replace(down, records={"arrays": state.get(_OWN, self._start)})
