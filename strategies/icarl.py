"""Federated iCaRL's server: merges weights and exemplars, then trains on the exemplars."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.data import Batch
from fedsim.forms import REST, Field, Form, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.model import Model
from fedsim.sampling import Sampler
from fedsim.seeding import derive, generator
from fedsim.strategy import Strategy
from fedsim.training import LocalTraining, fit, seeded
from fedsim.wire import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Weights and exemplars.

    Attributes:
        arrays: The global model.
        inputs: Exemplars, ``[m, ...]``, best first within a class.
        labels: Their classes, ``[m]``.
    """

    arrays: Params
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """How the server trains on the exemplars after averaging.

    Attributes:
        backbone: Builds the model's backbone from ``input_shape``.
        head: Builds its head from ``(d, K)``.
        training: Optimiser, epochs, batch size; ``epochs: 0`` leaves the average as it is. The
            learning rate stays the same in all rounds.
    """

    backbone: Callable[..., nn.Module]
    head: Callable[[int, int], nn.Module]
    training: LocalTraining


class ICaRL(Strategy[Memory]):
    """Averages the models, keeps a budget of exemplars, and trains on all of them.

    The budget is shared equally by the classes known; clients' exemplars of the same class are
    taken in turn, each client's best first, so that an old class gives up its last ones.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        budget: Exemplars the server keeps.
        merging: How it trains on them.
        seed: Seed of the run.

    Raises:
        ValueError: If the budget is not positive.

    Source:
        Hendryx et al., 2021, arXiv:2109.00150 (comparator): budget 4,000, 50 epochs.
    """

    rebuilds_model = True

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        budget: int,
        merging: Merging,
        seed: int,
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if budget < 1:
            raise ValueError(f"strategy.budget must be at least 1, got {budget}")
        self._budget, self._merging, self._seed = budget, merging, seed
        self._payload: tuple[Memory | None, Records] = None, {}

    def init(self, params: Params) -> Memory:
        """The initial model and no exemplar."""
        none = torch.empty(0, dtype=torch.int64)
        return Memory(arrays=params, inputs=torch.empty(0), labels=none)

    def payload(self, tick: Tick, state: Memory, client_id: int | None) -> Records:
        """Records ``arrays`` and ``exemplars`` (``inputs`` ``[m, ...]``, ``labels`` ``[m]``)."""
        del tick, client_id
        if self._payload[0] is not state:
            exemplars = {"inputs": state.inputs, "labels": state.labels}
            self._payload = state, {"arrays": state.arrays, "exemplars": exemplars}
        return self._payload[1]

    def aggregate(self, tick: Tick, state: Memory, uploads: Iterable[Upload]) -> Memory:
        """Averaged weights after training on the merged exemplars."""
        parts: list[Params] = []

        def models() -> Iterator[tuple[float, Params]]:
            for upload in uploads:
                parts.append(upload.records["exemplars"])
                yield upload.num_examples, upload.records["arrays"]

        arrays = weighted_mean(models())
        if len(state.labels):
            parts.insert(0, {"inputs": state.inputs, "labels": state.labels})
        inputs = torch.cat([p["inputs"] for p in parts])
        labels = torch.cat([p["labels"] for p in parts])
        owners = torch.cat([torch.full_like(p["labels"], i) for i, p in enumerate(parts)])
        kept = within_budget(labels, owners, self._budget)
        state = Memory(arrays=arrays, inputs=inputs[kept], labels=labels[kept])
        return self._trained(state, tick)

    def expects(self, tick: Tick, state: Memory, upload: Upload) -> Sequence[Form]:
        """A model, and labelled exemplars like those in memory."""
        del tick, upload
        shape: tuple[int | str, ...] = (
            tuple(state.inputs.shape[1:]) if len(state.labels) else (REST,)
        )
        last = None if self.num_classes is None else self.num_classes - 1
        exemplars = {
            "inputs": Field(float, ("m", *shape)),
            "labels": Field(torch.int64, ("m",), low=0, high=last),
        }
        return [Form(records={"arrays": fields_of(state.arrays), "exemplars": exemplars})]

    def shared(self, state: Memory) -> Params:
        """The global model."""
        return state.arrays

    def measures(self, state: Memory) -> dict[str, float]:
        """Classes known, exemplars kept and their bytes."""
        size = state.inputs.numel() * state.inputs.element_size()
        return {
            "known_classes": float(len(torch.unique(state.labels))),
            "exemplars": float(len(state.labels)),
            "exemplar_bytes": float(size),
        }

    def _trained(self, state: Memory, tick: Tick) -> Memory:
        """The state with the model trained on the exemplars."""
        training = self._merging.training
        if training.epochs == 0:
            return state
        with seeded(derive(self._seed, "merging", tick.round)):
            model = self._model(state)
            model.train()
            optimizer = training.optimizer(model.parameters())
            rng = generator(self._seed, "merging", tick.round)
            fit(
                partial(_loss, model),
                self._batches(state, rng),
                optimizer,
                list(model.parameters()),
                training.clip_norm,
            )
        arrays = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return Memory(arrays=arrays, inputs=state.inputs, labels=state.labels)

    def _model(self, state: Memory) -> Model:
        """The global model, with as many classes as its head has outputs."""
        backbone = self._merging.backbone(input_shape=tuple(state.inputs.shape[1:]))
        outputs = next(t for n, t in reversed(state.arrays.items()) if n.startswith("head."))
        model = Model(backbone, outputs.shape[0], self._merging.head)
        model.load_state_dict(state.arrays)
        return model

    def _batches(self, state: Memory, rng: torch.Generator) -> Iterator[Batch]:
        training = self._merging.training
        size = training.batch_size or len(state.labels)
        for _ in range(training.epochs):
            for rows in torch.randperm(len(state.labels), generator=rng).split(size):  # type: ignore[no-untyped-call]
                yield Batch(state.inputs[rows], state.labels[rows])


def within_budget(labels: Tensor, owners: Tensor, budget: int) -> Tensor:
    """Which exemplars stay: equally many of every class, owners in turn, each one's best first.

    Args:
        labels: Class of every exemplar, ``[m]``; an owner's come best first.
        owners: Who offers it, ``[m]``.
        budget: Exemplars to keep; every class keeps at least one.

    Returns:
        Positions, class by class, ``[m']``.
    """
    known = torch.unique(labels)
    share = max(budget // len(known), 1)
    kept = []
    for label in known:
        members = (labels == label).nonzero().flatten()
        turns = torch.empty_like(members)
        for owner in torch.unique(owners[members]):
            own = owners[members] == owner
            turns[own] = torch.arange(int(own.sum()))
        kept.append(members[torch.argsort(turns, stable=True)[:share]])
    return torch.cat(kept)


def _loss(model: Model, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.inputs), batch.targets)
