"""Avalanche's training strategies as federated clients, with boundaries from the clock."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clients.avalanche_data import ClientStream
from clients.avalanche_memory import Memory
from clients.avalanche_strategy import Meter, build_strategy, check_scenario
from fedsim.client import Client, Setting
from fedsim.data import Batch
from fedsim.model import Model, mask_logits
from fedsim.seeding import derive
from fedsim.state import ClientState
from fedsim.training import LocalTraining, optimizer_params, seeded
from fedsim.wire import Download, Upload

MEMORY = "avalanche"  # the group of tensors that holds a strategy's memory
VISITED = "visited"  # its tensor with the experiences this client has trained on, in order
POSITION = "position"  # counter: the experience that is open, -1 before the first
STREAMS = 8  # clients whose Avalanche streams are kept in the process


class Avalanche(Client):
    """Runs an Avalanche strategy inside a client.

    In Avalanche one call of ``strategy.train(experience)`` is the experience; here an experience
    lasts several rounds. So the three parts of that call are run apart:

    - **open**, in the client's first round of an experience, after the download is loaded:
      ``before_training``, the data set and its loader, ``before_training_exp``;
    - **epochs**, in every round: ``training.epochs`` passes of Avalanche's own loop;
    - **close**, once the experience is over: ``after_training_exp`` and ``after_training``, on the
      data of the experience. That is when the client next takes part, in a later experience, and
      with that round's download in the model, as :meth:`fedsim.client.Client.consolidate` does.

    One round per experience, one client and its own upload as the next download is Avalanche's own
    loop, weight for weight. ``strategy.clock.train_exp_counter`` counts the experiences this client
    has closed, iterations and epochs go on counting over rounds. What closing with the download,
    i.e. with the federation's agreement on the experience, means: EWC and MAS measure importance
    at the global model and anchor it; LwF distils from the global model; DER stores the global
    model's logits; replay, GEM and AGEM keep examples and do not look at the model; synaptic
    intelligence divides the path of the client's own steps by the distance to the global model,
    which includes what averaging added. Strategies that start an experience from stored weights
    (GDumb, from-scratch training) ignore the download in the first round of an experience, then
    train on the average like everybody.

    Everything the strategy and its plugins remember lies in the client's state between rounds,
    replayed examples as indices into the client's stream. One strategy object serves all clients
    of the process. Iterators over replay memory begin anew in every round.

    The loss is the strategy's own, over all classes; task labels select the plugins' heads and
    memories and restrict the prediction, not the loss.

    Args:
        setting: What all clients share.
        training: Optimiser, epochs, batch size; ``batch_size: 0`` is refused.
        strategy: Builds the strategy: a class of ``avalanche.training.supervised``, or a partial
            of one with its options, e.g. ``plugins``. The model, optimiser, epochs, batch size,
            device and evaluator come from here.

    Attributes:
        personal: Whether predictions need the client's own memory (iCaRL's class means), so that
            only clients can judge the method.

    Raises:
        ValueError: If the strategy cannot work with the model, the scenario or the training.
        TypeError: If a plugin remembers something that cannot be stored; see
            :class:`clients.avalanche_memory.Memory`.
    """

    personal = False

    def __init__(
        self, setting: Setting, *, training: LocalTraining, strategy: Callable[..., Any]
    ) -> None:
        super().__init__(setting, training=training)
        self._strategy = build_strategy(strategy, self.model, training, setting.device)
        check_scenario(self._strategy, setting.scenario)
        self._meter = Meter(training.clip_norm)
        self._strategy.plugins.insert(0, self._meter)  # its clock must stay the last plugin
        fixed = {"evaluator": self._strategy.evaluator, "meter": self._meter}
        self._memory = Memory(self._strategy, fixed)
        self.personal = hasattr(self._strategy.model, "eval_classifier")
        self._streams: OrderedDict[int, ClientStream] = OrderedDict()
        self._has_memory = False  # whether the client under evaluation has trained before

    def train(self, down: Download, state: ClientState) -> Upload:
        """See :meth:`fedsim.client.Client.train`."""
        client_id = self._trainee(down)
        position = down.tick.experience
        if position < 0 or len(self._shard(client_id, position)) == 0:
            return Upload(client_id=client_id, num_examples=0, records={})
        shard = self._shard(client_id, position)
        stream = self._stream(client_id)
        last = state.count(POSITION, -1)
        with _seeded(derive(self.setting.seed, "noise", down.tick.round, client_id)):
            self.load(self.model, down, state)
            visited = self._restore(stream, down, state)
            if 0 <= last < position:
                self._close(stream, client_id, last)
            if last < position:
                visited.append(position)
                stream.announce(visited)
                self._open(stream, position)
            loss = self._run_epochs(stream, position)
            self._adopt_model()
            records = self.upload(self.model, shard, down, state)
        self._keep(stream, visited, state)
        return Upload(
            client_id=client_id,
            num_examples=len(shard),
            records=records,
            metrics={"loss": loss},
        )

    def evaluate(self, down: Download, state: ClientState) -> Upload:
        """See :meth:`fedsim.client.Client.evaluate`.

        A strategy with a classifier of its own answers as if the experience ended now: the open
        experience is closed with the downloaded model, on a copy of the memory. Without a memory,
        before a client's first training and for the server, the model's head answers.
        """
        self._has_memory = False
        if self.personal and down.client_id is not None and MEMORY in state:
            self._has_memory = True
            self.load(self.model, down, state)
            stream = self._stream(down.client_id)
            with _seeded(derive(self.setting.seed, "noise", down.tick.round, down.client_id)):
                self._restore(stream, down, state)
                self._close(stream, down.client_id, state.count(POSITION))
        self._strategy.model.eval()
        return super().evaluate(down, state)

    def predict(self, model: Model, batch: Batch, down: Download, state: ClientState) -> Tensor:
        """Logits of the model; of the strategy's own classifier where it has one.

        A nearest-mean classifier scores a class with minus the distance to its mean; minus
        infinity marks classes without a mean, which it does not know.
        """
        own = self._strategy.model
        if own is model:
            return super().predict(model, batch, down, state)
        if self.personal and self._has_memory:
            scores = self._nearest_means(own, batch.inputs)
        else:
            scores = own.train_classifier(own.feature_extractor(batch.inputs))
        return mask_logits(scores, batch.tasks, self.scenario.task_classes)

    def _nearest_means(self, own: Any, inputs: Tensor) -> Tensor:
        scores: Tensor = own(inputs)
        full = scores.new_full((len(scores), self.scenario.num_classes), -torch.inf)
        known = (own.eval_classifier.class_means != 0).any(dim=1).nonzero().squeeze(1)
        full[:, known] = scores[:, known]
        return full

    # ---- the three parts of Avalanche's train ----------------------------------------------

    def _open(self, stream: ClientStream, position: int) -> None:
        strategy = self._enter(stream, position)
        strategy.model.train()
        strategy._before_training()
        strategy._before_training_exp()

    def _run_epochs(self, stream: ClientStream, position: int) -> float:
        strategy = self._enter(stream, position)
        self._meter.start()
        strategy._train_exp(strategy.experience, [])
        return self._meter.mean()

    def _close(self, stream: ClientStream, client_id: int, position: int) -> None:
        strategy = self._enter(stream, position)
        with _seeded(derive(self.setting.seed, "close", position, client_id)):
            strategy._after_training_exp()
            strategy._after_training()
        strategy._train_cleanup()

    def _enter(self, stream: ClientStream, position: int) -> Any:
        """The strategy, as it is while it trains on an experience."""
        strategy = self._strategy
        strategy.experience = stream.experiences[position]
        strategy.is_training = True
        strategy._stop_training = False
        return strategy

    # ---- the memory ------------------------------------------------------------------------

    def _restore(self, stream: ClientStream, down: Download, state: ClientState) -> list[int]:
        """Give the strategy the client's memory and an optimiser; returns experiences visited."""
        memory = state.get(MEMORY)
        self._memory.read(memory, stream)
        strategy = self._strategy
        strategy.optimizer = self._optimizer(list(strategy.model.parameters()), down, state)
        visited = [] if memory is None else memory[VISITED].tolist()
        stream.announce(visited)
        return visited

    def _keep(self, stream: ClientStream, visited: list[int], state: ClientState) -> None:
        state[MEMORY] = {**self._memory.write(stream), VISITED: torch.tensor(visited)}
        state.set_count(POSITION, visited[-1])
        if self.training.keep_optimizer:
            state["optimizer"] = optimizer_params(self._strategy.optimizer)

    def _adopt_model(self) -> None:
        """Where a strategy trained another model object, take over its weights."""
        strategy, own = self._strategy, self._memory.blueprint.module
        if strategy.model is own:
            return
        own.load_state_dict(strategy.model.state_dict())
        strategy.model = own
        strategy.optimized_param_id = dict(own.named_parameters())

    def _stream(self, client_id: int) -> ClientStream:
        if client_id not in self._streams:
            self._streams[client_id] = ClientStream(self.scenario, client_id)
        self._streams.move_to_end(client_id)
        while len(self._streams) > STREAMS:
            self._streams.popitem(last=False)
        return self._streams[client_id]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's and Python's own generators start from ``seed`` and are put back afterwards."""
    before = random.getstate()
    random.seed(seed)
    try:
        with seeded(seed):
            yield
    finally:
        random.setstate(before)
