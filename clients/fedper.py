"""A client that shares a part of its model and keeps the rest."""

from fedsim.arrays import Records
from fedsim.client import Client, Setting
from fedsim.data import Shard
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class FedPer(Client):
    """Trains the whole model; sends what it received of it and keeps the other tensors.

    What is shared is the server's decision: the record ``base`` of the download. Without one the
    client learns alone. Private tensors start from the run's initial model.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.

    Source:
        Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv:1912.00818.
    """

    def __init__(self, setting: Setting, *, training: LocalTraining) -> None:
        super().__init__(setting, training=training)
        self._start = {name: tensor.clone() for name, tensor in self._slots.items()}

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """Put the shared tensors and the client's own into the model."""
        del model
        own = state.get("private", {})
        self.load_arrays({**self._start, **own, **down.records.get("base", {})})

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """The shared tensors; the others go into the state."""
        del model, shard
        shared = down.records.get("base", {})
        own = {name: t.clone() for name, t in self._slots.items() if name not in shared}
        if own:
            state["private"] = own
        return {"base": {name: self._slots[name].clone() for name in shared}} if shared else {}
