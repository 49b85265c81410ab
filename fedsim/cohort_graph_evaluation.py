"""Tests of a block of clients that hold graphs, each with its own model, on the union of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.arrays import Params
from fedsim.backbones.graph_base import Graph
from fedsim.cohort_graph import JointGraphs, Network, tested
from fedsim.cohort_graph_plan import graph_objection
from fedsim.cohort_kinds import runs_of_alike
from fedsim.cohort_views import UnstackableError
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

if TYPE_CHECKING:  # it is imported by the module that runs clients, which knows them already
    from fedsim.client import Client


class GraphEvaluation:
    """Tests several clients that hold graphs by one forward pass.

    A client's model is what its own ``load`` makes of its download and state, so models may differ.

    Args:
        client: Serves all of them.

    Raises:
        UnstackableError: If their graphs are not computed at once.
    """

    def __init__(self, client: "Client") -> None:
        reason = graph_objection(client)
        if reason is None and client.overrides("predict"):
            reason = "it overrides predict"
        if reason is not None:
            raise UnstackableError(reason)
        self._client = client
        self._network = Network(client.model.backbone)  # type: ignore[arg-type]
        self._joints = JointGraphs(client)

    def values(self, client_id: int) -> int:
        """Numbers that a client takes: its weights, and its rows in every layer."""
        graph: Graph = self._client.scenario.shard(client_id, 0, "test").inputs
        weights = self._client.tensors()
        width = sum(len(tensor) for name, tensor in weights.items() if name.endswith("bias"))
        return len(graph.x) * width + sum(tensor.numel() for tensor in weights.values())

    @torch.no_grad()
    def run(self, downs: Sequence[Download], states: Sequence[ClientState]) -> list[Upload]:
        """What :meth:`fedsim.client.Client.evaluate` says of every client.

        Raises:
            UnstackableError: If a client is tested on another graph than it trains on.
        """
        client = self._client
        ids = [down.client_id for down in downs if down.client_id is not None]
        if len(ids) < len(downs):
            raise UnstackableError("a test is nobody's")
        joint = self._joints.of(ids)
        shared = not client.overrides("load") and len(runs_of_alike(downs)) == 1
        if shared:
            client.load(client.model, downs[0], states[0])
            weights = {name: tensor[None] for name, tensor in client.tensors().items()}
        else:
            weights = self._loaded(downs, states)
        graph = joint[0].merged() if shared else joint[0]
        scores = self._network.logits(graph, weights, None, None)
        return [
            Upload(
                client_id=client_id,
                num_examples=sum(metrics["examples"]),  # type: ignore[arg-type]
                records={},
                metrics=metrics,
            )
            for client_id, metrics in zip(ids, tested(client, joint, scores), strict=True)
        ]

    def _loaded(self, downs: Sequence[Download], states: Sequence[ClientState]) -> Params:
        """The models of all clients, one row for each."""
        client = self._client
        rows: dict[str, list[Tensor]] = {name: [] for name in client.tensors()}
        for down, state in zip(downs, states, strict=True):
            client.load(client.model, down, state)
            for name, tensor in client.tensors().items():
                rows[name].append(tensor.clone())
        return {name: torch.stack(tensors) for name, tensors in rows.items()}
