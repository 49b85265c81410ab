"""What travels: a download to a client and its upload, and their form as Flower messages.

Message content, in both directions: each entry of ``records`` is an ``ArrayRecord`` under its own
name (the model's parameters are called ``arrays``, as Flower's strategies expect), ``config`` is a
``ConfigRecord`` and ``metrics`` a ``MetricRecord`` with ``num-examples``. Of the clock only the
round travels, and comes back with the reply; both ends derive the rest from the same configuration.
"""

from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsim.arrays import (
    LocalContent,
    Params,
    Records,
    TensorArray,
    fill,
    num_bytes,
    to_params,
    to_record,
)
from fedsim.clock import Clock, Tick

__all__ = ["Config", "Download", "Metrics", "Params", "Records", "Upload"]

Config = dict[str, int | float | str | bool]
Metrics = dict[str, int | float | list[float]]

NUM_EXAMPLES = "num-examples"  # the key by which Flower's strategies weigh
SERVER_ROUND = "server-round"  # the key under which Flower's strategies send the round
METRICS, CONFIG = "metrics", "config"  # what is not tensors in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What the server sends to one client.

    Attributes:
        client_id: In ``[0, num_clients)``; None when the server evaluates on its own behalf.
        tick: The client's time.
        records: Named groups of tensors; ``arrays`` holds the model. Read only: the memory is
            shared by all clients of the round.
        config: Scalars from the strategy.
    """

    client_id: int | None
    tick: Tick
    records: Records
    config: Config = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What one client returns.

    Attributes:
        client_id: Who.
        num_examples: Examples it used; ``0`` says that it had nothing to do.
        records: Named groups of tensors.
        metrics: Numbers, or one list of numbers over experiences.
    """

    client_id: int
    num_examples: int | float
    records: Records
    metrics: Metrics = field(default_factory=dict)


def to_content(download: Download) -> RecordDict:
    """Message content of a download."""
    content = RecordDict({name: to_record(params) for name, params in download.records.items()})
    content[CONFIG] = ConfigRecord({**download.config, SERVER_ROUND: download.tick.round})
    return content


def client_number(context: Context) -> int:
    """Which client a node is.

    Raises:
        ValueError: If the node has no ``partition-id``.
    """
    number = context.node_config.get("partition-id")
    if not isinstance(number, int):
        raise ValueError(
            f"node {context.node_id} needs an integer 'partition-id' in its node config,"
            f" got {number!r}"
        )
    return number


class Decoded:
    """Contents of messages that live at the same time, each decoded once."""

    def __init__(self) -> None:
        self._contents: dict[int, tuple[RecordDict, Records, Config]] = {}
        self._params: dict[int, Params] = {}

    def content(self, content: RecordDict) -> tuple[Records, Config]:
        """The tensors and scalars of a download; read only."""
        if id(content) not in self._contents:  # it is kept too, so that its id stays taken
            records: Records = {}
            config: Config = {}
            for name, record in content.items():
                if isinstance(record, ConfigRecord):
                    config.update(record)  # type: ignore[arg-type]
                elif isinstance(record, ArrayRecord):
                    if id(record) not in self._params:
                        self._params[id(record)] = to_params(record)
                    records[name] = self._params[id(record)]
            self._contents[id(content)] = content, records, config
        return self._contents[id(content)][1:]


def to_download(
    message: Message,
    context: Context,
    clock: Clock,
    decoded: "Decoded | None" = None,
) -> Download:
    """The download inside a message, from the client's point of view.

    Args:
        message: What the server sent.
        context: The client's context, which tells its number.
        clock: Tells the client's time.
        decoded: What was decoded before; filled here. For messages that share contents or records.

    Raises:
        ValueError: If the message carries no round, or the node has no ``partition-id``.
    """
    client_id, content = client_number(context), message.content
    records, config = (decoded or Decoded()).content(content)
    round_ = config.get(SERVER_ROUND)
    if not isinstance(round_, int):
        raise ValueError(f"the message needs an integer {SERVER_ROUND!r}, got {round_!r}")
    tick = clock.at(round_, client_id)
    return Download(client_id=client_id, tick=tick, records=records, config=config)


def to_reply(upload: Upload, message: Message) -> Message:
    """The reply that carries an upload, and the round that it answers."""
    content = to_reply_content(upload, round_of(message.content))
    return Message(fill(RecordDict(), content), reply_to=message)


def to_reply_content(upload: Upload, round_: int | None) -> dict[str, Any]:
    """The records of a reply, by name.

    Args:
        upload: What they carry.
        round_: The round of the message that is answered; None if it does not say.
    """
    metrics: Metrics = {NUM_EXAMPLES: upload.num_examples, **upload.metrics}
    plain = all(type(value) in (int, float) for value in metrics.values())
    content: dict[str, Any] = {name: to_record(params) for name, params in upload.records.items()}
    content[METRICS] = fill(MetricRecord(), metrics) if plain else MetricRecord({**metrics})
    if round_ is not None:
        content[CONFIG] = fill(ConfigRecord(), {SERVER_ROUND: round_})
    return content


def to_upload(reply: Message, client_id: int) -> Upload:
    """The upload inside a reply.

    Raises:
        ValueError: If the reply has no ``num-examples``.
    """
    content = reply.content
    if isinstance(content, LocalContent) and content.known is not None:
        upload: Upload = content.known
        return upload
    records: Records = {}
    metrics: Metrics = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            records[name] = to_params(record)
        elif isinstance(record, MetricRecord):
            metrics.update(record)  # type: ignore[arg-type]
    num_examples = metrics.pop(NUM_EXAMPLES, None)
    if not isinstance(num_examples, int | float):
        raise ValueError(f"the reply needs a number {NUM_EXAMPLES!r}, got {num_examples!r}")
    upload = Upload(
        client_id=client_id, num_examples=num_examples, records=records, metrics=metrics
    )
    if isinstance(content, LocalContent):
        content.known = upload  # the gate reads it first, then the strategy
    return upload


def round_of(content: RecordDict) -> int | None:
    """The round that a message or its reply belongs to, or None if it does not say."""
    for record in content.values():
        if isinstance(record, ConfigRecord) and SERVER_ROUND in record:
            value = record[SERVER_ROUND]
            return value if isinstance(value, int) else None
    return None


def restamped(content: RecordDict, round_: int) -> RecordDict:
    """The content, saying that it belongs to another round."""
    new = fill(RecordDict(), dict(content))
    new[CONFIG] = ConfigRecord({SERVER_ROUND: round_})
    return new


def content_bytes(content: RecordDict) -> int:
    """Memory that a message's content takes, without decoding or copying any of it."""
    total = 0
    for record in content.values():
        size = _array_bytes if isinstance(record, ArrayRecord) else _value_bytes
        for name, value in record.items():
            total += len(name) + size(value)
    return total


def _array_bytes(array: Any) -> int:
    if isinstance(array, TensorArray):
        return array.tensor.numel() * array.tensor.element_size()
    return len(array.data)


def _value_bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    return 8  # every number travels as 64 bits


def record_bytes(records: Records) -> dict[str, int]:
    """Bytes of every named record (see :func:`fedsim.arrays.num_bytes`)."""
    return {name: num_bytes(params) for name, params in records.items()}
