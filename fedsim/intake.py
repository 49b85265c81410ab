"""What comes back in a round: checked, recorded, and handed on if it may be aggregated."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.arrays import to_params
from fedsim.bundle import row_of
from fedsim.checks import VoidRoundError
from fedsim.evaluation import Evaluation
from fedsim.faults import Faults
from fedsim.forms import Fault, Form
from fedsim.gate import Gate, Rejection, evaluation_fault, is_idle, loss_fault
from fedsim.replies import sender
from fedsim.roster import Roster
from fedsim.roundlog import RoundLog
from fedsim.screen import Arrival, Screen, outvoted
from fedsim.strategy import Strategy
from fedsim.wire import Upload, record_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Takes the replies of a round through the gate.

    Attributes:
        strategy: Says how uploads may look, if it is one of fedsim's.
        roster: Which node is which client.
        evaluation: Whether uploads carry tests.
        gate: What an update must satisfy.
        faults: What goes wrong on purpose, or None.
    """

    strategy: FlowerStrategy
    roster: Roster
    evaluation: Evaluation
    gate: Gate
    faults: Faults | None

    def accepted(
        self, log: RoundLog, arrays: ArrayRecord, screen: Screen, replies: Iterable[Message]
    ) -> Iterator[Message]:
        """Replies that may be aggregated; the others are recorded and dropped."""
        loss = 0.0
        for arrival in self._agreeing(log, screen, self._screened(log, arrays, screen, replies)):
            upload = arrival.upload
            log.cohort.append(arrival.client)
            if arrival.clipped:
                log.measures["clipped_updates"] = log.measures.get("clipped_updates", 0) + 1
            if self.evaluation.in_training and "accuracy" in upload.metrics:
                log.evaluations.append(replace(upload, records={}))
            log.num_examples += int(upload.num_examples)
            value = upload.metrics.get("loss")
            if isinstance(value, int | float):
                loss += value * upload.num_examples
                log.train_loss = loss / max(log.num_examples, 1)
            yield arrival.reply

    def _screened(
        self, log: RoundLog, arrays: ArrayRecord, screen: Screen, replies: Iterable[Message]
    ) -> Iterator[Arrival]:
        """Uploads that are as they should be, each for itself."""
        round_ = log.tick.round
        own = self.strategy if isinstance(self.strategy, Strategy) else None
        in_training = self.evaluation.in_training
        for reply in replies:
            client = self.client(reply)
            upload = screen.read(reply, client)
            if isinstance(upload, Fault):
                self._reject(log, client, upload)
                continue
            _accumulate(log.upload_bytes, _sizes(upload))
            if is_idle(upload):
                log.idle.append(client)
                continue
            forms: Sequence[Form] | None = screen.usual
            fault = evaluation_fault(upload) if in_training else None
            if own is None:
                tested = in_training and "accuracy" in upload.metrics
                fault = fault or (None if tested else loss_fault(upload))  # "loss" is the tests'
            else:
                forms = own.expects(log.tick, own.ready(arrays), upload)
            arrival = screen.admit(reply, upload, forms)
            if isinstance(arrival, Fault):
                self._reject(log, client, arrival)
            elif fault is not None:
                self._reject(log, client, fault)
            else:
                yield arrival
        for client in screen.silent():
            silence = Fault("no_reply", "no reply")
            if self.faults is not None:
                silence = self.faults.silence(round_, client)
            self._reject(log, client, silence)

    def _agreeing(
        self, log: RoundLog, screen: Screen, arrivals: Iterator[Arrival]
    ) -> Iterator[Arrival]:
        """Uploads that go together, once there are enough of them.

        Raises:
            VoidRoundError: If there are fewer than ``gate.min_results``.
        """
        flower = not isinstance(self.strategy, Strategy)  # its strategies hold all replies anyway
        need = self.gate.min_results
        held: list[Arrival] = []
        apart = flower
        for arrival in arrivals:
            held.append(arrival)
            apart = apart or bool(arrival.sizes)
            if not apart and len(held) + len(log.idle) >= need:
                break  # the rest need not wait for each other
        faults = outvoted(held, by_metrics=flower)
        for client, fault in faults.items():
            self._reject(log, client, fault)
        held = [arrival for arrival in held if arrival.client not in faults]
        came = len(held) + len(log.idle)
        if screen.asked and came < need:
            kinds = Counter(rejection.kind for rejection in log.rejections)
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
            if log.rejections:
                first = log.rejections[0]
                told += f"; the first, of client {first.client}: {first.reason}"
            raise VoidRoundError(
                f"round {log.tick.round}: {came} of {len(screen.asked)} clients gave a usable"
                f" result and gate.min_results is {need}; rejected: {told}"
            )
        yield from held
        yield from arrivals

    def tested(
        self, log: RoundLog, screen: Screen, replies: Iterable[Message]
    ) -> Iterator[Message]:
        """Replies of clients that tested; the others are recorded and dropped."""
        arrivals: list[Arrival] = []
        faults: dict[int, Fault] = {}
        for reply in replies:
            client = self.client(reply)
            upload = screen.read(reply, client)
            if isinstance(upload, Upload):
                upload = evaluation_fault(upload) or upload
            if isinstance(upload, Fault):
                self._reject(log, client, upload, test=True)
            elif upload.num_examples > 0:  # weightless replies would make Flower divide by zero
                arrivals.append(Arrival(client=client, reply=reply, upload=upload))
        faults |= {client: Fault("no_reply", "no reply") for client in screen.silent()}
        faults |= outvoted(arrivals, by_metrics=not isinstance(self.strategy, Strategy))
        for client, fault in faults.items():
            self._reject(log, client, fault, test=True)
        for arrival in arrivals:
            if arrival.client not in faults:
                log.evaluations.append(arrival.upload)
                yield arrival.reply

    def _reject(self, log: RoundLog, client: int, fault: Fault, *, test: bool = False) -> None:
        """Note what was refused; ends the run if the gate's policy says so."""
        round_, kind, reason = log.tick.round, *fault
        if test:
            kind, reason = "evaluation", f"evaluation failed: {reason}"
        log.rejections.append(Rejection(round=round_, client=client, kind=kind, reason=reason))
        if self.gate.policy == "abort" and not test:
            raise VoidRoundError(f"round {round_}, client {client}: {reason} (gate.policy=abort)")

    def client(self, message: Message) -> int:
        """Who sent a reply; -1 if the node is nobody's."""
        try:
            return self.roster.client(sender(message))
        except KeyError:
            return -1

    def screen(self, round_: int, arrays: ArrayRecord, messages: list[Message]) -> Screen:
        """The gate for the replies to these messages."""
        asked = {self.roster.client(m.metadata.dst_node_id): m.content for m in messages}
        return Screen(self.gate, round_=round_, asked=asked, model=to_params(arrays))


def _sizes(upload: Upload) -> dict[str, int]:
    row = row_of(upload.records)
    if row is None:
        return record_bytes(upload.records)
    return row.bundle.once("record bytes", None, lambda: record_bytes(upload.records))


def _accumulate(total: dict[str, int], part: dict[str, int]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0) + value
