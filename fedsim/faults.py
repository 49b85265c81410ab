"""Faults on purpose: clients that fail, are slow, send rubbish or attack, by configuration.

Who is struck when is a pure function of the seed, the round and the client, so a faulty run is the
same on every engine. A client is struck by at most one of the kinds that strike replies
(:data:`STRIKES`) in a round; attackers (:data:`ATTACKS`) are the same clients in all rounds.

Time is virtual: nobody sleeps. A straggler's seconds are compared with ``engine.timeout``, and a
hung client is one whose seconds never end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedsim.checks import ConfigError
from fedsim.forms import Fault
from fedsim.functional.attacks import SPOIL, reversed_update, with_noise
from fedsim.seeding import derive, generator
from fedsim.wire import Download, Upload, restamped

Struck = float | Sequence[int]  # a share, or the clients that are struck in every round
STRIKES = (
    "fail", "hang", "straggle", "dropout", "nan", "inf", "huge", "wrong_shape", "wrong_dtype",
    "wrong_keys", "empty", "duplicate", "stale", "negative",
)  # fmt: skip
ATTACKS = ("sign_flip", "label_flip", "noise")
_SILENT = ("hang", "dropout")
_DRAWS = 1 << 63  # `derive` gives integers below


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which faults there are.

    Of every kind in :data:`STRIKES` either the share of the replies it strikes, or the ids of the
    clients it strikes in every round; of :data:`ATTACKS` the share of the clients, or their ids.

    Attributes:
        seed: Seed of the run.
        num_clients: Registered clients.
        fail: The client raises an exception.
        hang: It never answers, and costs the whole timeout.
        straggle: It takes ``delay_s`` more seconds.
        dropout: It is not reached.
        nan: A value of every record is NaN.
        inf: A value of every record is infinite.
        huge: All values are 1e30.
        wrong_shape: All tensors have one dimension more.
        wrong_dtype: Floats come in double precision; doubles in single.
        wrong_keys: A tensor of every record has another name.
        empty: No tensors at all.
        duplicate: The reply comes twice.
        stale: The reply says that it belongs to the round before.
        negative: The number of examples is negative.
        sign_flip: Attackers that send their update reversed and ``scale`` times as large.
        label_flip: Attackers that train on labels ``K - 1 - y`` instead of ``y``.
        noise: Attackers that add Gaussian noise of standard deviation ``scale``.
        timeout: Seconds that a client may take, or None.
        delay_s: Seconds that a straggler is late.
        scale: See ``sign_flip`` and ``noise``.
    """

    seed: int
    num_clients: int
    fail: Struck = 0.0
    hang: Struck = 0.0
    straggle: Struck = 0.0
    dropout: Struck = 0.0
    nan: Struck = 0.0
    inf: Struck = 0.0
    huge: Struck = 0.0
    wrong_shape: Struck = 0.0
    wrong_dtype: Struck = 0.0
    wrong_keys: Struck = 0.0
    empty: Struck = 0.0
    duplicate: Struck = 0.0
    stale: Struck = 0.0
    negative: Struck = 0.0
    sign_flip: Struck = 0.0
    label_flip: Struck = 0.0
    noise: Struck = 0.0
    timeout: float | None = None
    delay_s: float = 30.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for kind in (*STRIKES, *ATTACKS):
            _check_struck(kind, getattr(self, kind), self.num_clients)
        if (total := sum(map(self._rate, STRIKES))) > 1:
            raise ValueError(f"the shares of the faults add up to {total:g}, expected at most 1")
        for name in ("delay_s", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"faults.{name} must be above 0, got {getattr(self, name)}")

    def check(self, *, is_graph: bool) -> None:
        """Raise :class:`ConfigError` for faults that cannot be had in this run."""
        if self.hang and self.timeout is None:
            raise ConfigError("faults.hang needs engine.timeout, or the round would never end")
        if self.label_flip and is_graph:
            raise ConfigError("faults.label_flip takes images and vectors, not graphs")

    @property
    def strikes_replies(self) -> bool:
        """Whether any reply may be another than it should be, or none."""
        return any(getattr(self, kind) for kind in (*STRIKES, "sign_flip", "noise"))

    def strike(self, round_: int, client: int) -> str | None:
        """The kind of fault that strikes a client's reply, or None."""
        for kind in STRIKES:
            struck = getattr(self, kind)
            if not isinstance(struck, int | float) and client in struck:
                return kind
        if not any(map(self._rate, STRIKES)):
            return None
        drawn = derive(self.seed, "fault", round_, client) / _DRAWS
        for kind in STRIKES:
            drawn -= self._rate(kind)
            if drawn < 0:
                return kind
        return None

    def attackers(self, kind: str) -> frozenset[int]:
        """The clients that attack in this way, in all rounds."""
        struck = getattr(self, kind)
        if not isinstance(struck, int | float):
            return frozenset(struck)
        return _drawn(self.seed, kind, float(struck), self.num_clients)

    # ---- at the clients --------------------------------------------------------------------

    def failure(self, message: Message, down: Download) -> Message | None:
        """The reply of a client that fails, or None if it does not."""
        if down.client_id is None or self.strike(down.tick.round, down.client_id) != "fail":
            return None
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code, "RuntimeError: injected fault"), reply_to=message)

    def spoil(self, upload: Upload, down: Download) -> Upload:
        """What arrives of an upload."""
        if not upload.records:
            return upload
        client, round_ = upload.client_id, down.tick.round
        if client in self.attackers("sign_flip"):
            upload = replace(
                upload, records=reversed_update(upload.records, down.records, self.scale)
            )
        if client in self.attackers("noise"):
            rng = generator(self.seed, "fault noise", round_, client)
            upload = replace(upload, records=with_noise(upload.records, self.scale, rng))
        kind = self.strike(round_, client)
        if kind == "negative":
            return replace(upload, num_examples=-upload.num_examples)
        if kind == "empty":
            return replace(upload, records={})
        return replace(upload, records=SPOIL[kind](upload.records)) if kind in SPOIL else upload

    # ---- on the way ------------------------------------------------------------------------

    def reached(
        self, messages: list[Message], round_: int, client_of: Callable[[Message], int]
    ) -> list[Message]:
        """The messages of clients that can be reached and will answer some day."""
        return [m for m in messages if self.strike(round_, client_of(m)) not in _SILENT]

    def arriving(
        self, replies: Iterable[Message], round_: int, client_of: Callable[[Message], int]
    ) -> Iterator[Message]:
        """The replies that come in time; doubled or misdated where faults say so."""
        for reply in replies:
            kind = self.strike(round_, client_of(reply))
            if kind == "straggle" and self.delay_s > self._limit:
                continue
            if kind == "stale" and reply.has_content():
                reply.content = restamped(reply.content, round_ - 1)
            yield reply
            if kind == "duplicate":
                yield reply

    def silence(self, round_: int, client: int) -> Fault:
        """Why nothing came of a client."""
        kind = self.strike(round_, client)
        if kind == "straggle":
            return Fault("late", f"{self.delay_s:g} s late, engine.timeout is {self.timeout:g} s")
        limit = "" if self.timeout is None else f" within {self.timeout:g} s"
        return Fault("no_reply", f"no reply{limit}{f' ({kind})' if kind in _SILENT else ''}")

    def waited(self, round_: int, clients: Iterable[int]) -> float:
        """Virtual seconds that the round lasts longer because of the faults."""
        kinds = {self.strike(round_, client) for client in clients}
        longest = self._limit if "hang" in kinds else self.delay_s if "straggle" in kinds else 0.0
        return min(longest, self._limit)

    @property
    def _limit(self) -> float:
        return float("inf") if self.timeout is None else self.timeout

    def _rate(self, kind: str) -> float:
        struck = getattr(self, kind)
        return float(struck) if isinstance(struck, int | float) else 0.0


@lru_cache(maxsize=64)
def _drawn(seed: int, kind: str, share: float, num_clients: int) -> frozenset[int]:
    order = torch.randperm(num_clients, generator=generator(seed, "fault", kind))
    return frozenset(order[: round(share * num_clients)].tolist())


def _check_struck(kind: str, struck: object, num_clients: int) -> None:
    if isinstance(struck, int | float) and not isinstance(struck, bool):
        if not 0 <= struck <= 1:
            raise ValueError(
                f"faults.{kind} must be a share in [0, 1], or client ids; got {struck}"
            )
    elif isinstance(struck, list | tuple) and all(type(c) is int for c in struck):
        wrong = [c for c in struck if not 0 <= c < num_clients]
        if wrong:
            raise ValueError(f"faults.{kind}: there is no client {wrong[0]} among {num_clients}")
    else:
        raise ValueError(f"faults.{kind} must be a share or a list of client ids, got {struck!r}")
