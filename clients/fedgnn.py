"""Client of FedGNN: its nodes have embeddings of other clients' nodes as further neighbours."""

import torch
from torch import Tensor
from torch.nn import functional

from clients.whole_graph import check_whole_graph
from fedsim.arrays import Params, Records
from fedsim.backbones.graph_base import rows as rows_of
from fedsim.client import Client, Setting
from fedsim.data import Batch, Inputs, Shard
from fedsim.functional.neighbour_matching import attached
from fedsim.model import Model, mask_logits
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download


class FedGNN(Client):
    """Trains on its subgraph, whose nodes average with the foreign nodes attached to them.

    What is averaged is the output of the backbone's last layer before its activation; foreign
    embeddings carry no gradient. Asked for links it sends, once, the pseudonyms of its nodes and of
    everything they are linked to, nodes of other clients included; then, in every round, the
    embeddings of the nodes that the server wants, made from its own subgraph alone. Without foreign
    neighbours it is :class:`clients.sgd.SGD`.

    Args:
        setting: What all clients share; the scenario must tell ``references`` and have one
            experience, the backbone must ``embed``.
        training: Optimiser, epochs, batch size.

    Raises:
        ValueError: If scenario or backbone is none for graphs, or nodes arrive over time.

    Source:
        Wu et al., FedGNN, 2021, arXiv:2102.04925, adapted to subgraphs as Baek et al., ICML 2023,
        arXiv:2206.10206, describe it; neither says at which layer embeddings are attached.
        Pseudonyms are hashes keyed with the run's seed.
    """

    def __init__(self, setting: Setting, *, training: LocalTraining) -> None:
        super().__init__(setting, training=training)
        check_whole_graph("fedgnn", setting, self.model, "references")

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Cross-entropy, foreign neighbours included."""
        return functional.cross_entropy(self.predict(model, batch, down, state), batch.targets)

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Logits, foreign neighbours included."""
        foreign = down.records.get("neighbours")
        if foreign is None:
            return super().predict(model, batch, down, state)
        parts = {name: tensor.to(self.setting.device) for name, tensor in foreign.items()}
        values = attached(self._embed(batch.inputs), **parts)
        features = model.backbone.activate_rows(rows_of(values, batch.inputs))  # type: ignore[operator]
        logits: Tensor = model.head(features)
        return mask_logits(logits, batch.tasks, self.scenario.task_classes)

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """The model; the links if they are asked for, else the embeddings that are wanted."""
        records = super().upload(model, shard, down, state)
        if not down.config.get("matching", False):
            return records
        if "wanted" not in down.records:
            return {**records, "holdings": self._holdings(self._trainee(down))}
        wanted = down.records["wanted"]["rows"]
        model.eval()
        with torch.no_grad():
            values = self._embed(shard.inputs.to(self.setting.device))[wanted]
        return {**records, "embeddings": {"rows": wanted, "values": values}}

    def _embed(self, graph: Inputs) -> Tensor:
        values: Tensor = self.model.backbone.embed(graph)  # type: ignore[operator]
        return values

    def _holdings(self, client_id: int) -> Params:
        """The client's nodes and their links under pseudonyms."""
        nodes, rows, neighbours = self.scenario.references(client_id)  # type: ignore[attr-defined]
        ids, places = torch.unique(torch.cat([nodes, neighbours]), return_inverse=True)
        names = torch.tensor([derive(self.setting.seed, "node", node) for node in ids.tolist()])
        own, others = names[places[: len(nodes)]], names[places[len(nodes) :]]
        return {"own": own, "rows": rows, "neighbours": others}
