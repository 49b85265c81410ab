"""The round loop: configure, send, check, record, aggregate, evaluate, over any Flower strategy."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedsim.arrays import Records, num_bytes, to_params, to_record
from fedsim.averaging import average_blocks, configured
from fedsim.checks import VoidRoundError
from fedsim.clock import Clock, Tick
from fedsim.evaluation import Evaluation
from fedsim.faults import Faults
from fedsim.gate import Gate
from fedsim.grid import LocalGrid
from fedsim.intake import Intake
from fedsim.roster import Roster
from fedsim.roundlog import BEFORE as BEFORE
from fedsim.roundlog import RoundLog as RoundLog
from fedsim.seeding import derive
from fedsim.strategy import Strategy
from fedsim.wire import NUM_EXAMPLES, Upload

Evaluator = Callable[[Tick, Records], Upload | None]


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
        gate: What an update must satisfy.
        faults: What goes wrong on purpose, or None.
    """

    strategy: FlowerStrategy
    grid: Grid
    roster: Roster
    clock: Clock
    seed: int
    evaluator: Evaluator | None = None
    timeout: float | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    gate: Gate = field(default_factory=Gate)
    faults: Faults | None = None

    def run(
        self, arrays: ArrayRecord, first_round: int = 1
    ) -> Iterator[tuple[RoundLog, ArrayRecord]]:
        """Each round's log with the global arrays after it; round 0 is the untrained model.

        Raises:
            VoidRoundError: If a round's result may not be used; its log comes before.
        """
        if isinstance(self.strategy, Strategy):
            self.strategy.bind(self.clock, self.roster)
        if first_round == 1:
            log = RoundLog(BEFORE)
            log.server = self._evaluate_server(BEFORE, arrays)
            yield log, arrays
        for round_ in range(first_round, self.clock.num_rounds + 1):
            log = RoundLog(self.clock.at(round_))
            try:
                arrays = self._train(log, arrays)
            except VoidRoundError:
                log.is_void = True
                yield log, arrays
                raise
            if self.clock.evaluates(round_):
                if not self.evaluation.in_training:
                    self._evaluate(log, arrays)
                self._check_tests(log)
            yield log, arrays

    def _train(self, log: RoundLog, arrays: ArrayRecord) -> ArrayRecord:
        round_ = log.tick.round
        start = time.perf_counter()
        with flower_sampling(derive(self.seed, "sample", round_)):
            messages = list(configured(self.strategy, round_, arrays, self.grid, "train"))
        log.seconds["configure"] = time.perf_counter() - start
        _count_bytes(messages, log.download_bytes)
        intake = self._intake()
        screen = intake.screen(round_, arrays, messages)
        answers = self._answers(intake, messages, round_)
        replies = _Timed(intake.accepted(log, arrays, screen, answers))
        start = time.perf_counter()
        if isinstance(self.grid, LocalGrid) and self.grid.trains_blocks:
            aggregated, measured = average_blocks(self.strategy, round_, replies)
        else:
            aggregated, measured = self.strategy.aggregate_train(round_, replies)
        _keep_numbers(log.measures, measured or {})
        if isinstance(self.strategy, Strategy) and aggregated is not None:
            log.matrices = self.strategy.matrices(self.strategy.ready(arrays))
        log.seconds["train"] = replies.seconds
        if self.faults is not None:
            log.seconds["waiting"] = self.faults.waited(round_, screen.asked)
        log.seconds["aggregate"] = time.perf_counter() - start - replies.seconds
        return arrays if aggregated is None else like(aggregated, arrays)

    def _evaluate(self, log: RoundLog, arrays: ArrayRecord) -> None:
        round_ = log.tick.round
        start = time.perf_counter()
        with flower_sampling(derive(self.seed, "evaluate")):  # the same clients every time
            messages = list(configured(self.strategy, round_, arrays, self.grid, "evaluate"))
        _count_bytes(messages, log.download_bytes)
        intake = self._intake()
        screen = intake.screen(round_, arrays, messages)
        replies = list(intake.tested(log, screen, self._exchange(messages)))
        if replies:
            self.strategy.aggregate_evaluate(round_, replies)
        log.server = self._evaluate_server(log.tick, arrays)
        if log.server is not None:
            _keep_numbers(log.measures, log.server.metrics)
        log.seconds["evaluate"] = time.perf_counter() - start

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

    def _intake(self) -> Intake:
        return Intake(
            strategy=self.strategy,
            roster=self.roster,
            evaluation=self.evaluation,
            gate=self.gate,
            faults=self.faults,
        )

    def _answers(self, intake: Intake, messages: list[Message], round_: int) -> Iterable[Message]:
        """Replies to those who train, with what goes wrong on the way."""
        if self.faults is None:
            return self._exchange(messages)
        reached = self.faults.reached(
            messages, round_, lambda m: self.roster.client(m.metadata.dst_node_id)
        )
        replies = self._exchange(reached)
        return self.faults.arriving(replies, round_, intake.client)

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
        return sorted(replies, key=self._intake().client)


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
    """The arrays decoded, with the types of the template; averages of integers are rounded."""
    params = to_params(arrays)
    wanted = to_params(template)
    return to_record({n: _as(t, wanted[n]) if n in wanted else t for n, t in params.items()})


def _as(tensor: Tensor, template: Tensor) -> Tensor:
    rounds = tensor.is_floating_point() and not template.is_floating_point()
    return (tensor.round() if rounds else tensor).to(template.dtype)


def _keep_numbers(total: dict[str, float], part: Mapping[str, Any]) -> None:
    """Keep the plain numbers that the round's log has no other place for."""
    for name, value in part.items():
        if isinstance(value, int | float) and name not in ("loss", NUM_EXAMPLES):
            total[name] = float(value)


def _count_bytes(messages: Iterable[Message], total: dict[str, int]) -> None:
    """Add the size of every array record of the messages, by record name."""
    parts: dict[int, tuple[RecordDict, list[tuple[str, ArrayRecord]]]] = {}
    sizes: dict[int, int] = {}  # payloads shared by many clients are measured once
    for message in messages:
        content = message.content
        if id(content) not in parts:  # it is kept too, so that its id stays taken
            arrays = [(n, r) for n, r in content.items() if isinstance(r, ArrayRecord)]
            parts[id(content)] = content, arrays
        for name, record in parts[id(content)][1]:
            if id(record) not in sizes:
                sizes[id(record)] = num_bytes(to_params(record))
            total[name] = total.get(name, 0) + sizes[id(record)]
