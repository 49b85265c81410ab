"""The client side of a method: five small methods over one fixed training and evaluation course."""

import copy
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from fedsim.arrays import Params, Records, write_into
from fedsim.data import Batch, Shard
from fedsim.fieldtest import after_merge, before_merge
from fedsim.model import Model, mask_logits
from fedsim.scenario import Split
from fedsim.scoring import Candidates, Score, measured
from fedsim.seeding import derive, generator
from fedsim.setting import Setting as Setting
from fedsim.setting import initial_model as initial_model
from fedsim.state import ClientState
from fedsim.training import (
    LocalTraining,
    SpareOptimizer,
    fit,
    optimizer_params,
    restore_optimizer,
    seeded,
)
from fedsim.wire import Download, Metrics, Upload

EVALUATION_BATCH = 512


class Client:
    """Client side of a method.

    One object serves all clients of a process, one after the other. It keeps nothing about any of
    them: what a client remembers lies in its :class:`fedsim.state.ClientState`. A method overrides
    some of :meth:`load`, :meth:`loss`, :meth:`batches`, :meth:`consolidate`, :meth:`upload` and
    :meth:`predict`; as it stands, this class is federated averaging's client.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size.
    """

    def __init__(self, setting: Setting, *, training: LocalTraining) -> None:
        self.setting = setting
        self.scenario = setting.scenario
        self.training = training
        self.model = initial_model(setting).to(setting.device)
        self._spare = SpareOptimizer(training)
        self.candidates = Candidates(setting.scenario)
        # the tensors behind the model's parameters and buffers, to be written in place
        self._slots = {name: t.detach() for name, t in self.model.state_dict().items()}

    # ---- what a method may override --------------------------------------------------------

    def load(self, model: Model, down: Download, state: ClientState) -> None:
        """Put the download into the model. Default: record ``arrays`` into all its tensors."""
        del model, state
        self.load_arrays(down.records["arrays"])

    def loss(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Mean loss of a batch, a scalar. Default: cross-entropy."""
        del down, state
        logits = mask_logits(model(batch.inputs), batch.tasks, self.scenario.task_classes)
        return functional.cross_entropy(logits, batch.targets)

    def batches(
        self, shard: Shard, down: Download, state: ClientState, rng: torch.Generator
    ) -> Iterator[Batch]:
        """The batches of one round. Default: ``epochs`` passes in random order."""
        del down, state
        for _ in range(self.training.epochs):
            yield from shard.batches(self.training.batch_size, rng)

    def consolidate(self, model: Model, shard: Shard, down: Download, state: ClientState) -> None:
        """Called once when an experience is over, before the next begins. Default: nothing.

        With partial participation that is the first round in which the client takes part after the
        boundary, so every experience it trained on is consolidated once, in order. ``model`` holds
        the download of that round, ``shard`` the data of the experience that is over.
        """

    def upload(self, model: Model, shard: Shard, down: Download, state: ClientState) -> Records:
        """What the client sends. Default: record ``arrays``, the model's tensors."""
        del model, shard, down, state
        return {"arrays": {name: tensor.clone() for name, tensor in self._slots.items()}}

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Scores of every class, ``[n, K]``; the largest is the prediction. Default: logits."""
        del down, state
        return mask_logits(model(batch.inputs), batch.tasks, self.scenario.task_classes)

    def alone(self, records: Records, down: Download) -> Records:
        """What the server would send next if this client's upload were the only one.

        It is what the client's copy is tested with before the merge. Default: what was received,
        with the upload's records in the place of those of the same name.
        """
        return {**down.records, **records}

    def after_merge(self, down: Download, state: ClientState) -> Metrics:
        """Tests of base and field after the merge, of what was loaded for the server."""
        return {**after_merge(self, down, state)}

    # ---- the fixed course ------------------------------------------------------------------

    def train(self, down: Download, state: ClientState) -> Upload:
        """One round of one client."""
        client_id = self._trainee(down)
        if down.tick.experience < 0:
            return Upload(client_id=client_id, num_examples=0, records={})
        shard = self._shard(client_id, down.tick.experience)
        if len(shard) == 0:
            return Upload(client_id=client_id, num_examples=0, records={})
        seed = self.setting.seed
        with seeded(derive(seed, "noise", down.tick.round, client_id), self.setting.device):
            start = time.perf_counter()
            self.load(self.model, down, state)
            self._cross_boundary(client_id, down, state)
            self.model.train()
            rng = generator(seed, "train", down.tick.round, client_id)
            metrics: Metrics = {
                "loss": self.fit(self.batches(shard, down, state, rng), down, state)
            }
            seconds = time.perf_counter() - start
            if self.tests_in_training(down):
                metrics |= self.measure(down, state)
                self.model.train()
            records = self.upload(self.model, shard, down, state)
            if self.scenario.evaluation_points:
                metrics |= before_merge(self, shard, records, seconds, down, state)
        return Upload(
            client_id=client_id,
            num_examples=len(shard),
            records=records,
            metrics=metrics,
        )

    def train_cohort(
        self, downs: Sequence[Download], states: Sequence[ClientState]
    ) -> list[Upload]:
        """One round of several clients, uploads in the order of the downloads.

        A method that trains many at once in a way of its own overrides this; it is called where
        ``engine.cohort`` allows it, and must give what :meth:`train` gives up to rounding.
        """
        return [self.train(*pair) for pair in zip(downs, states, strict=True)]

    def evaluate(self, down: Download, state: ClientState) -> Upload:
        """Accuracy and loss on the test data of every experience.

        The metrics are lists over experiences ``0..E-1`` (numbers of the scenario): ``accuracy``,
        ``accuracy_among_own`` and ``accuracy_among_met`` (see :class:`fedsim.scoring.Score`),
        ``loss`` and ``examples``; NaN where the client has no test data. A download without a
        client id is evaluated on the test data of all clients together; if the scenario has
        evaluation points, those of :meth:`fedsim.fieldtest.FieldTest.after` too.
        """
        self.load(self.model, down, state)
        metrics = self.measure(down, state)
        if down.client_id is None and self.scenario.evaluation_points:
            metrics |= self.after_merge(down, state)
        return Upload(
            client_id=-1 if down.client_id is None else down.client_id,
            num_examples=sum(metrics["examples"]),  # type: ignore[arg-type]
            records={},
            metrics=metrics,
        )

    def tests_in_training(self, down: Download) -> bool:
        """Whether the model is to be tested right after this round's local steps."""
        setting = self.setting
        return setting.evaluation.in_training and setting.clock.evaluates(down.tick.round)

    def measure(self, down: Download, state: ClientState) -> Metrics:
        """The lists of :meth:`evaluate` for the model as it is.

        Where runs are judged on validation data, ``val_accuracy`` and ``val_examples`` as well.
        """
        self.model.eval()
        splits: list[Split] = ["test"]
        if self.setting.evaluation.validates:
            splits.append("val")
        return measured({split: self._scores(split, down, state) for split in splits})

    def fit(self, batches: Iterator[Batch], down: Download, state: ClientState) -> float:
        """Train the model on the batches; returns the mean loss."""
        training, model = self.training, self.model
        parameters = [p for p in model.parameters() if p.requires_grad]
        renewed = None
        if not (training.keep_optimizer or self.overrides("_optimizer")):
            renewed = self._spare.renewed(parameters, self._rate_factor(down))
        optimizer = renewed or self._optimizer(parameters, down, state)
        loss = fit(
            lambda batch: self.loss(model, self.on_device(batch), down, state),
            batches,
            optimizer,
            parameters,
            training.clip_norm,
        )
        if training.keep_optimizer:
            state["optimizer"] = optimizer_params(optimizer)
        return loss

    def load_arrays(self, arrays: Params) -> None:
        """Write a full set of tensors into the model.

        Raises:
            ValueError: If names or shapes differ from the model's.
        """
        write_into(self._slots, arrays)

    def tensors(self) -> Params:
        """The tensors behind the model's parameters and buffers, by name; not copies."""
        return self._slots

    def overrides(self, *methods: str) -> bool:
        """Whether a subclass replaces one of these methods."""
        return any(getattr(type(self), name) is not getattr(Client, name) for name in methods)

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the model is."""
        if self.setting.device == "cpu":
            return batch
        device = self.setting.device
        tasks = None if batch.tasks is None else batch.tasks.to(device)
        inputs = copy.copy(batch.inputs)  # a graph's own `to` would move the stored shard away
        return Batch(inputs.to(device), batch.targets.to(device), tasks)

    def _optimizer(
        self, parameters: list[torch.nn.Parameter], down: Download, state: ClientState
    ) -> Optimizer:
        optimizer = self.training.optimizer(parameters)
        if self.training.keep_optimizer and "optimizer" in state:
            restore_optimizer(optimizer, state["optimizer"])
        for group in optimizer.param_groups:
            group["lr"] *= self._rate_factor(down)
        return optimizer

    def _rate_factor(self, down: Download) -> float:
        """What the schedule multiplies the learning rate by in this round."""
        return self.training.schedule((down.tick.round - 1) / self.setting.clock.num_rounds)

    def _shard(self, client_id: int, position: int) -> Shard:
        """Training data at a position of the client's stream."""
        experience = self.scenario.experience_at(client_id, position)
        return self.scenario.shard(client_id, experience, "train")

    def _cross_boundary(self, client_id: int, down: Download, state: ClientState) -> None:
        """Consolidate the last experience this client trained on, if it is over."""
        if not self.overrides("consolidate"):
            return
        last = state.count("position", -1)
        if 0 <= last < down.tick.experience:
            self.consolidate(self.model, self._shard(client_id, last), down, state)
        state.set_count("position", down.tick.experience)

    def _scores(
        self, split: Split, down: Download, state: ClientState
    ) -> tuple[list[Score], list[int]]:
        """The score and the number of examples of every experience."""
        experiences = range(self.scenario.num_experiences)
        shards = [self.scenario.shard(down.client_id, e, split) for e in experiences]
        scores = [self.score(shard, e, down, state) for e, shard in enumerate(shards)]
        return scores, [len(shard) for shard in shards]

    @torch.no_grad()
    def score(self, shard: Shard, experience: int, down: Download, state: ClientState) -> Score:
        """How well the model that was loaded does on test data of an experience."""
        total = Score()
        for stored in shard.batches(EVALUATION_BATCH):
            batch = self.on_device(stored)
            scores = self.predict(self.model, batch, down, state)
            total += self.candidates.score(scores, batch.targets, experience)
        return total

    def _trainee(self, down: Download) -> int:
        if down.client_id is None:
            raise ValueError("only clients train; this download names none")
        return down.client_id
