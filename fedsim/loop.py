"""The round loop: configure, send, check, record, aggregate, evaluate, over any Flower strategy."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.arrays import Records, num_bytes, to_params, to_record
from fedsim.clock import Clock, Tick
from fedsim.evaluation import Evaluation
from fedsim.gate import Rejection, fault, is_idle
from fedsim.grid import LocalGrid
from fedsim.matrices import Matrix
from fedsim.roster import Roster
from fedsim.seeding import derive
from fedsim.strategy import Strategy
from fedsim.wire import NUM_EXAMPLES, Upload, record_bytes, to_upload

BEFORE = Tick(0, -1, 0, is_first=False, is_last=False)  # the untrained model is measured here
Evaluator = Callable[[Tick, Records], Upload | None]


@dataclass(slots=True)
class RoundLog:
    """What happened in one round.

    Attributes:
        tick: The server's time.
        cohort: Clients whose updates were aggregated, in order.
        idle: Clients that were asked but had no data or had not joined.
        rejections: Updates that were refused.
        num_examples: Training examples behind the aggregate.
        train_loss: Example-weighted mean of the clients' training losses; NaN without any.
        upload_bytes: Sent by clients, by record name, rejected updates included.
        download_bytes: Sent to clients, by record name, for training and evaluation.
        seconds: Wall time by phase: configure, train, aggregate, evaluate.
        evaluations: Uploads of evaluating clients, in client order.
        server: The server's own evaluation of the global model, or None.
        measures: Further numbers, by name: what the strategy says of its state or, with Flower's
            strategies, the mean of what the clients measured; and what the server's evaluation
            found besides accuracy and loss.
        matrices: Numbers between the clients of the round, by name.
    """

    tick: Tick
    cohort: list[int] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    num_examples: int = 0
    train_loss: float = float("nan")
    upload_bytes: dict[str, int] = field(default_factory=dict)
    download_bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: list[Upload] = field(default_factory=list)
    server: Upload | None = None
    measures: dict[str, float] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One run's fixed parts.

    Attributes:
        strategy: Any Flower strategy, or one of fedsim's.
        grid: Where the clients are.
        roster: Which node is which client.
        clock: Federated continual time.
        seed: Seed of the run.
        evaluator: Evaluates what the server would send to a new client, or None to leave it out.
        timeout: Seconds that a cohort may take, or None.
        evaluation: When clients are tested, and whether on validation data too.
    """

    strategy: FlowerStrategy
    grid: Grid
    roster: Roster
    clock: Clock
    seed: int
    evaluator: Evaluator | None = None
    timeout: float | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)

    def run(
        self, arrays: ArrayRecord, first_round: int = 1
    ) -> Iterator[tuple[RoundLog, ArrayRecord]]:
        """Each round's log with the global arrays after it; round 0 is the untrained model."""
        if isinstance(self.strategy, Strategy):
            self.strategy.bind(self.clock, self.roster)
        if first_round == 1:
            log = RoundLog(BEFORE)
            log.server = self._evaluate_server(BEFORE, arrays)
            yield log, arrays
        for round_ in range(first_round, self.clock.num_rounds + 1):
            log = RoundLog(self.clock.at(round_))
            arrays = self._train(log, arrays)
            if self.clock.evaluates(round_):
                if not self.evaluation.in_training:
                    self._evaluate(log, arrays)
                self._check_tests(log)
            yield log, arrays

    def _train(self, log: RoundLog, arrays: ArrayRecord) -> ArrayRecord:
        round_ = log.tick.round
        start = time.perf_counter()
        with flower_sampling(derive(self.seed, "sample", round_)):
            messages = list(
                self.strategy.configure_train(round_, arrays, ConfigRecord(), self.grid)
            )
        log.seconds["configure"] = time.perf_counter() - start
        _count_bytes(messages, log.download_bytes)
        replies = _Timed(self._accepted(log, arrays, self._exchange(messages)))
        start = time.perf_counter()
        aggregated, measured = self.strategy.aggregate_train(round_, replies)
        _keep_numbers(log.measures, measured or {})
        if isinstance(self.strategy, Strategy) and aggregated is not None:
            log.matrices = self.strategy.matrices(self.strategy.ready(arrays))
        log.seconds["train"] = replies.seconds
        log.seconds["aggregate"] = time.perf_counter() - start - replies.seconds
        return arrays if aggregated is None else like(aggregated, arrays)

    def _accepted(
        self, log: RoundLog, arrays: ArrayRecord, replies: Iterable[Message]
    ) -> Iterator[Message]:
        """Replies that may be aggregated; the others are recorded and dropped."""
        model = to_params(arrays)
        loss = 0.0
        for reply in replies:
            client = self.roster.client(reply.metadata.src_node_id)
            upload, reason = _read(reply, client)
            if upload is not None:
                _accumulate(log.upload_bytes, record_bytes(upload.records))
                if is_idle(upload):
                    log.idle.append(client)
                    continue
                reason = fault(upload, model)
            if upload is None or reason is not None:
                self._reject(log, client, str(reason))
                continue
            log.cohort.append(client)
            if self.evaluation.in_training and "accuracy" in upload.metrics:
                log.evaluations.append(replace(upload, records={}))
            log.num_examples += int(upload.num_examples)
            value = upload.metrics.get("loss")
            if isinstance(value, int | float):
                loss += value * upload.num_examples
                log.train_loss = loss / max(log.num_examples, 1)
            yield reply

    def _evaluate(self, log: RoundLog, arrays: ArrayRecord) -> None:
        round_ = log.tick.round
        start = time.perf_counter()
        with flower_sampling(derive(self.seed, "evaluate")):  # the same clients every time
            messages = list(
                self.strategy.configure_evaluate(round_, arrays, ConfigRecord(), self.grid)
            )
        _count_bytes(messages, log.download_bytes)
        replies = list(self._answered(log, self._exchange(messages)))
        if replies:
            self.strategy.aggregate_evaluate(round_, replies)
        log.server = self._evaluate_server(log.tick, arrays)
        if log.server is not None:
            _keep_numbers(log.measures, log.server.metrics)
        log.seconds["evaluate"] = time.perf_counter() - start

    def _answered(self, log: RoundLog, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            client = self.roster.client(reply.metadata.src_node_id)
            upload, reason = _read(reply, client)
            if upload is None:
                self._reject(log, client, f"evaluation failed: {reason}")
            elif upload.num_examples > 0:  # weightless replies would make Flower divide by zero
                log.evaluations.append(upload)
                yield reply

    def _check_tests(self, log: RoundLog) -> None:
        """Raise if clients leave out tests that the run is to be judged by."""
        if self.evaluation.in_training and log.cohort and not log.evaluations:
            raise ValueError(
                "this client sends no tests with its updates, so it cannot be judged with"
                " evaluation.when=after_training"
            )
        tested = [*log.evaluations, *([] if log.server is None else [log.server])]
        if self.evaluation.validates and not all("val_accuracy" in t.metrics for t in tested):
            raise ValueError(
                "this client does not test on validation data, so it cannot be judged with"
                " evaluation.selection=best_validation"
            )

    def _reject(self, log: RoundLog, client: int, reason: str) -> None:
        log.rejections.append(Rejection(round=log.tick.round, client=client, reason=reason))

    def _evaluate_server(self, tick: Tick, arrays: ArrayRecord) -> Upload | None:
        if self.evaluator is None:
            return None
        records: Records = {"arrays": to_params(arrays)}
        if isinstance(self.strategy, Strategy):
            records = self.strategy.payload(tick, self.strategy.ready(arrays), None)
        return self.evaluator(tick, records)

    def _exchange(self, messages: list[Message]) -> Iterable[Message]:
        """Replies in client order, so that sums do not depend on who answers first."""
        if isinstance(self.grid, LocalGrid):
            return self.grid.stream(messages, timeout=self.timeout)
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout))
        return sorted(replies, key=lambda m: self.roster.client(m.metadata.src_node_id))


@contextmanager
def flower_sampling(seed: int) -> Iterator[None]:
    """Flower's strategies sample with Python's global generator: seed it here, restore it after."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class _Timed:
    """An iterator that knows how long its items took to come."""

    def __init__(self, items: Iterator[Message]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - start


def like(arrays: ArrayRecord, template: ArrayRecord) -> ArrayRecord:
    """The arrays decoded, with the dtypes of the template (averages of integers are floats)."""
    params = to_params(arrays)
    wanted = to_params(template)
    return to_record({n: t.to(wanted[n].dtype) if n in wanted else t for n, t in params.items()})


def _read(reply: Message, client: int) -> tuple[Upload | None, str | None]:
    """The upload inside a reply, or why there is none."""
    if reply.has_error():
        return None, reply.error.reason
    try:
        return to_upload(reply, client), None
    except ValueError as error:
        return None, str(error)


def _accumulate(total: dict[str, int], part: dict[str, int]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0) + value


def _keep_numbers(total: dict[str, float], part: Mapping[str, Any]) -> None:
    """Keep the plain numbers that the round's log has no other place for."""
    for name, value in part.items():
        if isinstance(value, int | float) and name not in ("loss", NUM_EXAMPLES):
            total[name] = float(value)


def _count_bytes(messages: Iterable[Message], total: dict[str, int]) -> None:
    """Add the size of every array record of the messages, by record name."""
    sizes: dict[int, int] = {}  # payloads shared by many clients are measured once
    for message in messages:
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord):
                if id(record) not in sizes:
                    sizes[id(record)] = num_bytes(to_params(record))
                total[name] = total.get(name, 0) + sizes[id(record)]
