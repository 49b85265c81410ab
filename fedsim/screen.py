"""The gate in one round: from replies to the uploads that may be aggregated."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from flwr.app import Error, Message, MetricRecord, RecordDict

from fedsim.arrays import LocalContent, Params, Records, fill, to_params, to_record
from fedsim.bundle import Row, row_of
from fedsim.forms import Fault, Form, Sizes, check, fields_of
from fedsim.gate import Gate, floats, is_finite, squared_norm, weight_fault
from fedsim.replies import DEADLINE, LocalReply, unread
from fedsim.wire import Upload, content_bytes, round_of, to_upload

MODEL_RECORDS = ("arrays", "base", "decoder")  # weights: what changed in them is the update
_DELTAS = "deltas"  # tensors that are changes already
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An upload that passed the checks.

    Attributes:
        client: Who.
        reply: The message, its arrays decoded.
        upload: What is in it.
        sizes: Sizes that must be the same in all uploads of the round.
        clipped: Whether it was scaled down.
    """

    client: int
    reply: Message
    upload: Upload
    sizes: Sizes = field(default_factory=dict)
    clipped: bool = False


class Screen:
    """The gate in one round.

    Args:
        gate: What is checked.
        round_: The round.
        asked: What was sent to the clients of the round.
        model: The global model.

    Attributes:
        usual: How the update of a strategy looks that only knows the model.
    """

    def __init__(
        self, gate: Gate, *, round_: int, asked: Mapping[int, RecordDict], model: Params
    ) -> None:
        self._gate, self._round, self._asked = gate, round_, asked
        self.usual = [Form(records={"arrays": fields_of(model)})]
        contents = list(asked.values())
        alike = all(content is contents[0] for content in contents)
        self._same = contents[0] if contents and alike else None  # what everybody was sent
        self._answered: set[int] = set()
        self._norms: dict[int, tuple[object, Params, float]] = {}  # of what was sent, by its id

    def read(self, reply: Message, client: int) -> Upload | Fault:
        """The upload inside a reply, or why there is none; nothing is decoded before its size."""
        if client not in self._asked:
            return Fault("unasked", "a reply from a node that was not asked in this round")
        if client in self._answered:
            return Fault("duplicate", "a second reply in the same round")
        self._answered.add(client)
        upload = unread(reply)
        if upload is None or not isinstance(reply, LocalReply):
            return self._decoded(reply, client)
        return self._bounded(reply.num_bytes(), reply.round) or upload

    def _decoded(self, reply: Message, client: int) -> Upload | Fault:
        """The upload inside a reply that came from elsewhere."""
        if reply.has_error():
            return _failure(reply.error)
        fault = self._bounded(content_bytes(reply.content), round_of(reply.content))
        if fault is not None:
            return fault
        measured = sum(isinstance(record, MetricRecord) for record in reply.content.values())
        if measured != 1:
            return Fault("metrics", f"expected one record of metrics, got {measured}")
        try:
            return to_upload(reply, client)
        except ValueError as error:
            return Fault("unreadable", str(error))

    def _bounded(self, size: int, answered: int | None) -> Fault | None:
        """Why a reply of so many bytes, to that round, must not be decoded, or None."""
        if size > self._gate.max_bytes:
            return Fault("size", f"{size} bytes, gate.max_bytes is {self._gate.max_bytes}")
        if answered not in (None, self._round):
            return Fault("stale", f"a reply to round {answered} in round {self._round}")
        return None

    @property
    def asked(self) -> list[int]:
        """Clients of the round."""
        return list(self._asked)

    def silent(self) -> list[int]:
        """Clients that were asked and did not reply at all."""
        return sorted(self._asked.keys() - self._answered)

    def admit(
        self, reply: Message, upload: Upload, forms: Sequence[Form] | None
    ) -> Arrival | Fault:
        """The upload as it may be aggregated, or why it must not be.

        Args:
            reply: What came.
            upload: What is in it.
            forms: How it may look; None checks record ``arrays``, if there is one, against the
                global model.
        """
        row = row_of(upload.records)
        if row is not None and forms is self.usual and self._is_sound(row, upload):
            return Arrival(client=upload.client_id, reply=reply, upload=upload)
        found = weight_fault(upload, self._gate.max_examples)
        sizes: Sizes = {}
        if found is None:
            found, sizes = self._compared(upload, forms)
        if found is not None:
            return found
        squares = _squares(upload, row)
        for name, square in squares.items():
            if not (math.isfinite(square) or is_finite(upload.records[name])):
                return Fault("not_finite", f"record {name!r} holds NaN or infinity")
        norm = self._update_norm(upload, squares)
        bound = self._gate.max_norm
        clipped = bound is not None and norm > bound
        if bound is not None and clipped:
            if self._gate.policy != "clip":
                return Fault("norm", f"the update's norm is {norm:.4g}, gate.max_norm is {bound:g}")
            upload = self._clipped(upload, bound / norm)
        is_plain = isinstance(reply, LocalReply) or isinstance(reply.content, LocalContent)
        if clipped or not is_plain:
            reply.content = _with_records(reply.content, upload.records)
        return Arrival(
            client=upload.client_id, reply=reply, upload=upload, sizes=sizes, clipped=clipped
        )

    def _is_sound(self, row: Row, upload: Upload) -> bool:
        """Whether the upload passes as nearly all do, which is found out for the block at once."""
        sent, weight = self._asked[upload.client_id], upload.num_examples
        if sent is not self._same or not 0 < weight <= self._gate.max_examples:
            return False
        return row.bundle.once("sound", self, lambda: self._sound(row, upload))[row.place]

    def _sound(self, row: Row, upload: Upload) -> list[bool]:
        """For every row of a block whether it is finite and within bounds, and they look right."""
        squares, bound = row.bundle.squares(), self._gate.max_norm
        fault, sizes = check(upload.records, self.usual)
        if fault is not None or sizes:
            return [False] * len(squares)
        _, norm = self._sent(upload.client_id, "arrays")
        reach = [math.sqrt(s) + norm if math.isfinite(s) else math.inf for s in squares]
        return [r < (math.inf if bound is None else bound) for r in reach]

    def _compared(self, upload: Upload, forms: Sequence[Form] | None) -> tuple[Fault | None, Sizes]:
        """Whether the upload looks as it must, and the sizes that it tells."""
        if forms is None and not upload.records:
            return Fault("records", "expected tensors, got none"), {}
        if forms is None:
            if "arrays" not in upload.records:
                return None, {}
            return check({"arrays": upload.records["arrays"]}, self.usual)[0], {}
        return check(upload.records, forms)

    def _update_norm(self, upload: Upload, squares: Mapping[str, float]) -> float:
        """The norm of the update, or 0 where even the sum of all norms is within bounds."""
        bound = self._gate.max_norm
        if bound is None:
            return 0.0
        parts: list[torch.Tensor] = []
        reach = 0.0
        for name, params in upload.records.items():
            sent, norm = self._sent(upload.client_id, name)
            if sent is not None:
                reach += math.sqrt(squares[name]) + norm if math.isfinite(squares[name]) else bound
            elif _DELTAS in params:
                parts.append(params[_DELTAS])
                reach += math.sqrt(squares[name]) if math.isfinite(squares[name]) else bound
        if reach < bound:
            return 0.0
        for name, params in upload.records.items():
            sent, _ = self._sent(upload.client_id, name)
            if sent is not None:
                parts += [params[n].double() - t.double() for n, t in floats(sent).items()]
        return math.hypot(*(float(torch.linalg.vector_norm(p.double())) for p in parts), 0.0)

    def _sent(self, client: int, record: str) -> tuple[Params | None, float]:
        """The weights that a client was sent under this name, and their norm."""
        if record not in MODEL_RECORDS or record not in self._asked[client]:
            return None, 0.0
        sent = self._asked[client][record]
        if id(sent) not in self._norms:
            params = to_params(sent)  # type: ignore[arg-type]
            self._norms[id(sent)] = sent, params, math.sqrt(squared_norm(params))
        return self._norms[id(sent)][1:]

    def _clipped(self, upload: Upload, factor: float) -> Upload:
        """The upload with its update scaled; integers stay as they are."""
        records: Records = {}
        for name, params in upload.records.items():
            sent, _ = self._sent(upload.client_id, name)
            if sent is not None:
                scaled = {n: torch.lerp(t, params[n], factor) for n, t in floats(sent).items()}
                records[name] = {n: scaled.get(n, tensor) for n, tensor in params.items()}
            elif _DELTAS in params:
                records[name] = {**params, _DELTAS: params[_DELTAS] * factor}
            else:
                records[name] = params
        return replace(upload, records=records)


def _failure(error: Error) -> Fault:
    """Why there is no reply but an error."""
    reason = error.reason or "no reason given"
    return Fault("late" if reason.startswith(DEADLINE) else "error", reason)


def _squares(upload: Upload, row: Row | None) -> dict[str, float]:
    """Sum of the squares of every record's values."""
    if row is not None:
        return {"arrays": row.bundle.squares()[row.place]}
    return {name: squared_norm(params) for name, params in upload.records.items()}


def outvoted(arrivals: Sequence[Arrival], *, by_metrics: bool) -> dict[int, Fault]:
    """Who differs from most in what must be the same for all; ties go to the first client.

    Args:
        arrivals: The uploads of a round, in client order.
        by_metrics: Whether the names and lengths of the metrics must agree too, as Flower's
            strategies ask.
    """
    if _are_alike(arrivals):
        return {}

    def metrics_of(arrival: Arrival) -> tuple[tuple[str, int], ...]:
        found = arrival.upload.metrics.items()
        return tuple(sorted((n, len(v) if isinstance(v, list) else -1) for n, v in found))

    def sizes_of(arrival: Arrival) -> tuple[tuple[str, object], ...]:
        return tuple(sorted(arrival.sizes.items()))

    faults: dict[int, Fault] = {}
    usual = _most_common(map(sizes_of, arrivals)) or ()
    for arrival in arrivals:
        if (sizes := sizes_of(arrival)) != usual:
            text = f"sizes {dict(sizes)}, those of most clients are {dict(usual)}"
            faults[arrival.client] = Fault("shape", text)
    names = _most_common(metrics_of(a) for a in arrivals if a.client not in faults) or ()
    for arrival in arrivals:
        if by_metrics and arrival.client not in faults and metrics_of(arrival) != names:
            got, want = (sorted(dict(m)) for m in (metrics_of(arrival), names))
            faults[arrival.client] = Fault("metrics", f"metrics {got}, most clients send {want}")
    return faults


def _are_alike(arrivals: Sequence[Arrival]) -> bool:
    """Whether nobody can differ from most: same sizes, and plain numbers of the same names."""
    if not arrivals:
        return True
    sizes, names = arrivals[0].sizes, arrivals[0].upload.metrics.keys()
    return all(
        a.sizes == sizes
        and a.upload.metrics.keys() == names
        and not any(isinstance(value, list) for value in a.upload.metrics.values())
        for a in arrivals
    )


def _with_records(content: RecordDict, records: Records) -> RecordDict:
    """The content with these arrays, decoded, so that nobody reads any bytes again."""
    return fill(LocalContent.of(content), {name: to_record(p) for name, p in records.items()})


def _most_common(values: Iterable[V]) -> V | None:
    counted = Counter(values)
    return max(counted, key=lambda value: counted[value], default=None)  # the first of them
