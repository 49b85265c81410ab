"""Client of FedSage+: mends its graph with generated neighbours and trains on that."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from clients.fedsage_generator import Generation, Lesson, NeighbourGenerator, lesson, noisy
from clients.whole_graph import check_whole_graph
from fedsim.arrays import Params, Records, write_into
from fedsim.client import Client, Setting
from fedsim.data import Batch, Inputs, Shard
from fedsim.functional.neighbour_generation import chosen, mended, reconstruction
from fedsim.scoring import Score
from fedsim.seeding import derive, generator
from fedsim.state import ClientState
from fedsim.training import (
    LocalTraining,
    fit,
    optimizer_params,
    restore_optimizer,
    seeded,
)
from fedsim.wire import Download, Metrics, Upload

CLASSIFY = "classify"
_WHOLE, _MOMENTS, _NEW = "neighbour_generator", "neighbour_generator_moments", "new_neighbours"


class FedSage(Client):
    """Learns to generate missing neighbours, adds them to its graph, and trains the model on it.

    What a round is for the server tells (``phase``, see :class:`strategies.fedsage.FedSage`).
    Before its first exchange a client hides a share of its nodes and trains encoder, degree and
    feature generator to find them; later only the feature generator learns, by its own loss and
    the gradients that other clients send. In the first ``classify`` round the graph gets its new
    neighbours once and for all; training and tests run on the mended graph. What is sent of a node
    is its code with noise and its number of hidden neighbours.

    Args:
        setting: What all clients share; the scenario must be one for graphs with one experience,
            the backbone must ``embed``.
        training: Optimiser, epochs, batch size; the generator has the same optimiser.
        generation: See :class:`clients.fedsage_generator.Generation`.

    Raises:
        ValueError: If scenario or backbone is none for graphs, or nodes arrive over time.

    Source:
        Zhang et al., Subgraph Federated Learning with Missing Neighbor Generation, NeurIPS 2021,
        arXiv:2106.13430; after the first exchange only the feature generator learns, as in its
        code.
    """

    def __init__(
        self, setting: Setting, *, training: LocalTraining, generation: Generation
    ) -> None:
        super().__init__(setting, training=training)
        check_whole_graph("fedsage", setting, self.model, "graph")
        self.generation = generation
        with seeded(derive(setting.seed, "neighbour generator")):
            whole = NeighbourGenerator(
                setting.model().backbone, generation, setting.scenario.input_shape[0]
            )
        self.generator = whole.to(setting.device)
        self._parts: Params = {n: t.detach() for n, t in self.generator.state_dict().items()}
        self._fresh = {name: tensor.clone() for name, tensor in self._parts.items()}
        self._graphs: dict[int, tuple[Tensor, Tensor, tuple[Tensor, Tensor]]] = {}

    # ---- rounds ----------------------------------------------------------------------------

    def train(self, down: Download, state: ClientState) -> Upload:
        """One round of one client: of the generators or, as usual, of the model."""
        client_id, phase = self._trainee(down), down.config.get("phase", CLASSIFY)
        records: Records = {}
        if self.generation.neighbours > 0 and not self._is_ready(down, state):
            seed = derive(self.setting.seed, "generator noise", down.tick.round, client_id)
            with seeded(seed, self.setting.device):
                self._advance(down, state)
                if phase == "generate":
                    records = self._codes(down)
                elif phase == "compare":
                    records = self._gradients(down)
                else:
                    state[_NEW] = self._new_neighbours(client_id)
        if phase == CLASSIFY:
            return super().train(down, state)
        metrics: Metrics = {}
        if self.tests_in_training(down):
            self.load(self.model, down, state)
            metrics = self.measure(down, state)
        size = len(self._shard(client_id, down.tick.experience))
        return Upload(client_id=client_id, num_examples=size, records=records, metrics=metrics)

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """See :meth:`Client.batches`; of the mended graph."""
        return super().batches(self._mended(shard, down, state), down, state, rng)

    def score(self, shard: Shard, experience: int, down: Download, state: ClientState) -> Score:
        """See :meth:`Client.score`; on the mended graph."""
        return super().score(self._mended(shard, down, state), experience, down, state)

    # ---- the generator ---------------------------------------------------------------------

    def _is_ready(self, down: Download, state: ClientState) -> bool:
        """Whether the graph is mended and the generator has nothing more to do."""
        phase = down.config.get("phase", CLASSIFY)
        return phase == CLASSIFY and _NEW in state and "gradient" not in down.records

    def _advance(self, down: Download, state: ClientState) -> None:
        """The client's generator, trained alone if it is new, and a step if there is a gradient."""
        client_id = self._trainee(down)
        if _WHOLE not in state:
            write_into(self._parts, self._fresh)
            own = self._lesson(client_id)
            steps = [Batch(own.graph, own.counts)] * self.generation.epochs
            parameters = list(self.generator.parameters())
            optimizer = self.training.optimizer(parameters)
            self.generator.train()
            fit(lambda _: own.loss(self.generator, self.generation), steps, optimizer, parameters)
            state[_WHOLE] = {name: tensor.clone() for name, tensor in self._parts.items()}
        else:
            write_into(self._parts, state[_WHOLE])
        self.generator.eval()
        if "gradient" in down.records:
            self._step(client_id, down.records["gradient"], state)

    def _step(self, client_id: int, gradient: Params, state: ClientState) -> None:
        """One step of the feature generator by its own loss and other clients' gradients."""
        options, own = self.generation, self._lesson(client_id)
        with torch.no_grad():
            codes = self.generator.codes(own.graph)
        named = dict(self.generator.features.named_parameters())
        optimizer = self.training.optimizer(named.values())
        if _MOMENTS in state:
            restore_optimizer(optimizer, state[_MOMENTS])

        def loss(_: Batch) -> Tensor:
            # the gradient of <theta, g> with respect to theta is g
            others = [(p * gradient[n].to(p.device)).sum() for n, p in named.items()]
            distance = options.features * own.distance(self.generator, codes)
            return distance + options.features * options.exchange * torch.stack(others).sum()

        fit(loss, [Batch(own.graph, own.counts)], optimizer, list(named.values()))
        state[_MOMENTS] = optimizer_params(optimizer)
        state[_WHOLE] = {name: tensor.clone() for name, tensor in self._parts.items()}

    @torch.no_grad()
    def _codes(self, down: Download) -> Records:
        """The feature generator, and noisy codes of some nodes that have hidden neighbours."""
        client_id = self._trainee(down)
        own = self._lesson(client_id)
        rng = generator(self.setting.seed, "codes", down.tick.round, client_id)
        known = own.counts.nonzero()[:, 0]
        picked = known[torch.randperm(len(known), generator=rng)[: self.generation.sample]]
        codes = noisy(self.generator.codes(own.graph)[picked])
        features = self.generator.features.state_dict()
        return {
            "generator": {name: tensor.detach().clone() for name, tensor in features.items()},
            "codes": {"codes": codes, "counts": own.counts[picked]},
        }

    def _gradients(self, down: Download) -> Records:
        """Gradient of every other generator's distance to the client's own nodes."""
        x = self._graph(self._trainee(down)).x
        records: Records = {}
        for name, sent in down.records.items():
            if not name.startswith("generator."):
                continue
            other = name.removeprefix("generator.")
            theirs = {n: t.to(x.device).clone().requires_grad_() for n, t in sent.items()}
            asked = {n: t.to(x.device) for n, t in down.records[f"codes.{other}"].items()}
            made = functional_call(self.generator.features, theirs, (asked["codes"],))
            distance = reconstruction(made, asked["counts"], x)
            found = torch.autograd.grad(distance, list(theirs.values()))
            records[f"gradient.{other}"] = dict(zip(theirs, found, strict=True))
        return records

    @torch.no_grad()
    def _new_neighbours(self, client_id: int) -> Params:
        """The neighbours that the client's graph gets: features ``[g, D]`` and ``rows`` ``[g]``."""
        codes = self.generator.codes(self._graph(client_id))
        made = self.generator.generate(codes)
        features, rows = chosen(made, self.generator.counts(codes))
        return {"features": features, "rows": rows}

    # ---- graphs ----------------------------------------------------------------------------

    def _graph(self, client_id: int) -> Inputs:
        """The client's whole subgraph."""
        return self._shard(client_id, 0).inputs.to(self.setting.device)

    def _lesson(self, client_id: int) -> Lesson:
        """The client's graph with the same nodes hidden every time."""
        rng = generator(self.setting.seed, "hidden nodes", client_id)
        return lesson(self._graph(client_id), self.generation.hidden, rng)

    def _mended(self, shard: Shard, down: Download, state: ClientState) -> Shard:
        """The shard on the mended graph; as it is before the graph is mended."""
        if down.client_id is None or _NEW not in state:
            return shard
        from torch_geometric.data import Data

        graph: Inputs = shard.inputs
        new = state[_NEW]
        kept = self._graphs.get(down.client_id)
        if kept is None or kept[0] is not graph.x or kept[1] is not new["features"]:
            parts = [new[name].to(graph.x.device) for name in ("features", "rows")]
            kept = graph.x, new["features"], mended(graph.x, graph.edge_index, *parts)
            self._graphs[down.client_id] = kept
        x, links = kept[2]
        mask = torch.cat([graph.mask, graph.mask.new_zeros(len(x) - len(graph.x))])
        return replace(shard, inputs=Data(x=x, edge_index=links, mask=mask))
