"""The server side of a method: a Flower ``Strategy`` written as pure functions of a state."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.arrays import Params, Records, to_params, to_record
from fedsim.clock import Clock, Tick
from fedsim.forms import Form
from fedsim.matrices import Matrix
from fedsim.metrics import mean_numbers
from fedsim.replies import unread
from fedsim.roster import Roster
from fedsim.sampling import Sampler
from fedsim.wire import SERVER_ROUND, Config, Metrics, Upload, to_upload

S = TypeVar("S")


class Strategy(FlowerStrategy, Generic[S]):
    """Server side of a method: state in, state out.

    A method implements :meth:`init`, :meth:`payload`, :meth:`aggregate` and :meth:`shared`; it sees
    tensors and client ids, never a message. Everything Flower asks of a strategy is done here.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.

    Attributes:
        personal: Whether evaluations measure each client's own model instead of a global one.
        state: The method's state; None before the first round.
        rebuilds_model: Whether the server makes a model of the tensors, and so needs all of them.
        num_classes: Classes of the scenario; None if nobody said.
    """

    personal: bool = False
    rebuilds_model: bool = False
    num_classes: int | None = None

    def __init__(self, *, sampler: Sampler, evaluation_sampler: Sampler) -> None:
        self._sampler = sampler
        self._evaluation_sampler = evaluation_sampler
        self._clock: Clock | None = None
        self._roster: Roster | None = None
        self.state: S | None = None

    # ---- what a method implements ----------------------------------------------------------

    @abstractmethod
    def init(self, params: Params) -> S:
        """The state before the first round, given the initial model."""

    @abstractmethod
    def payload(self, tick: Tick, state: S, client_id: int | None) -> Records:
        """What a client downloads, to train or to evaluate; None is the server's own evaluation.

        Return the same object for clients that get the same: it is then encoded once.
        """

    @abstractmethod
    def aggregate(self, tick: Tick, state: S, uploads: Iterable[Upload]) -> S:
        """The state after the uploads of a round, which come in client order and only once."""

    @abstractmethod
    def shared(self, state: S) -> Params:
        """The tensors that the server holds for everybody: what is saved and digested."""

    def expects(self, tick: Tick, state: S, upload: Upload) -> Sequence[Form] | None:
        """How an upload of this round may look; the gate refuses it where it fits no form.

        It is asked before :meth:`aggregate`, for every upload. Default: None, where only a record
        ``arrays`` is compared, with what :meth:`shared` gave.
        """
        del tick, state, upload
        return None

    def measures(self, state: S) -> dict[str, float]:
        """Numbers about the state for the round's log, by name. Default: none.

        What the clients measured is there too, averaged over those who have a number.
        """
        del state
        return {}

    def matrices(self, state: S) -> dict[str, Matrix]:
        """Numbers between the clients of the round, to be saved and drawn. Default: none."""
        del state
        return {}

    def config(self, tick: Tick) -> Config:
        """Scalars that every client of the round gets. Default: none."""
        del tick
        return {}

    # ---- Flower's side ---------------------------------------------------------------------

    def bind(self, clock: Clock, roster: Roster) -> None:
        """Tell the strategy the time and the clients; the round loop calls this once."""
        self._clock, self._roster = clock, roster

    def ready(self, arrays: ArrayRecord) -> S:
        """The state, made from the initial arrays on first use."""
        if self.state is None:
            self.state = self.init(to_params(arrays))
        return self.state

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See Flower's ``Strategy``."""
        del grid
        return self._messages(server_round, arrays, config, self._sampler, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See Flower's ``Strategy``."""
        del grid
        sampler = self._evaluation_sampler
        return self._messages(server_round, arrays, config, sampler, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See Flower's ``Strategy``; a round without any upload changes nothing."""
        clock, _ = self._bound()
        if self.state is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        uploads = self._uploads(replies)
        first = next(uploads, None)
        if first is None:
            return None, None
        told: list[Metrics] = []
        uploads = _overheard(itertools.chain([first], uploads), told)
        self.state = self.aggregate(clock.at(server_round), self.state, uploads)
        measures = {**mean_numbers(told), **self.measures(self.state)}
        return to_record(self.shared(self.state)), MetricRecord({**measures}) if measures else None

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See Flower's ``Strategy``; the round loop records the replies, so they are only read."""
        del server_round
        for _ in replies:
            pass
        return None

    def summary(self) -> None:
        """See Flower's ``Strategy``."""

    def _messages(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        sampler: Sampler,
        message_type: str,
    ) -> Iterator[Message]:
        clock, roster = self._bound()
        state = self.ready(arrays)
        tick = clock.at(server_round)
        scalars = {**config, **self.config(tick), SERVER_ROUND: server_round}
        encoded: dict[int, tuple[Params, ArrayRecord]] = {}
        for client_id in sampler.cohort(server_round, roster.num_clients, clock):
            content = RecordDict({"config": ConfigRecord(scalars)})
            for name, params in self.payload(tick, state, client_id).items():
                if id(params) not in encoded:  # params are kept too, so that their id stays taken
                    encoded[id(params)] = (params, to_record(params))
                content[name] = encoded[id(params)][1]
            yield Message(content, roster.node(client_id), message_type)

    def _uploads(self, replies: Iterable[Message]) -> Iterator[Upload]:
        _, roster = self._bound()
        for reply in replies:
            if reply.has_content():
                local = unread(reply)
                client_id = roster.client(reply.metadata.src_node_id)
                yield to_upload(reply, client_id) if local is None else local

    def _bound(self) -> tuple[Clock, Roster]:
        if self._clock is None or self._roster is None:
            raise RuntimeError(f"{type(self).__name__} needs bind(clock, roster) before a round")
        return self._clock, self._roster


def _overheard(uploads: Iterable[Upload], told: list[Metrics]) -> Iterator[Upload]:
    """The uploads as they come; their numbers are kept in ``told``."""
    for upload in uploads:
        told.append(upload.metrics)
        yield upload
