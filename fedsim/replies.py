"""Replies of clients that were trained at once: most are aggregated without being read one by one.

Flower's constructors check every argument, and a content's records are objects of their own. Here a
reply's metadata are copied from the message it answers, and its content is made when it is read.
"""

import time
from typing import Any

from flwr.app import ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from fedsim.arrays import LocalContent, fill, to_record
from fedsim.bundle import Row, row_of
from fedsim.wire import NUM_EXAMPLES, SERVER_ROUND, Upload

DEADLINE = "deadline"  # how the reason of an error begins that says that a client was too slow


class BlockReply(Message):
    """The reply of one client of a block.

    Args:
        upload: What it says.
        row: The tensors of the upload.
        message: What it answers.
        round_: The round of that.
    """

    def __init__(self, upload: Upload, row: Row, message: Message, round_: int) -> None:
        self.__dict__.update(
            _metadata=answering(message.metadata),
            _content=None,
            _error=None,
            _upload=upload,
            _row=row,
            _round=round_,
        )

    @property
    def upload(self) -> Any:
        """What the reply says, or None if its content has been replaced."""
        return self.__dict__["_upload"]

    @property
    def row(self) -> Row:
        """The tensors of the upload."""
        row: Row = self.__dict__["_row"]
        return row

    @property
    def round(self) -> int:
        """The round of the message that it answers."""
        round_: int = self.__dict__["_round"]
        return round_

    @property
    def content(self) -> RecordDict:
        """See Flower's ``Message``."""
        made: RecordDict | None = self.__dict__["_content"]
        if made is None:
            made = self.__dict__["_content"] = self._made()
        return made

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.update(_content=value, _upload=None)

    def has_content(self) -> bool:
        """See Flower's ``Message``."""
        return True

    def num_bytes(self) -> int:
        """Memory that the content takes, as :func:`fedsim.wire.content_bytes` counts it."""
        row, metrics = self.row, self.upload.metrics  # whose names are those of the whole block

        def measured() -> int:
            names = [*row, *metrics, NUM_EXAMPLES, SERVER_ROUND]
            tensors = sum(t.numel() * t.element_size() for t in row.values())
            return tensors + sum(map(len, names)) + 8 * (len(metrics) + 2)

        return row.bundle.once("bytes", None, measured)

    def _made(self) -> RecordDict:
        upload = self.upload
        metrics = {NUM_EXAMPLES: upload.num_examples, **upload.metrics}
        return fill(
            LocalContent(),
            {
                "arrays": to_record(upload.records["arrays"]),
                "metrics": fill(MetricRecord(), metrics),
                "config": fill(ConfigRecord(), {SERVER_ROUND: self.round}),
            },
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.metadata, self.content)


def block_reply(upload: Upload, message: Message, round_: int) -> BlockReply | None:
    """The reply of a client of a block; None if its upload is more than a row and numbers."""
    row = row_of(upload.records)
    if row is None:
        return None
    if any(type(value) not in (int, float) for value in upload.metrics.values()):
        return None
    return BlockReply(upload, row, message, round_)


def addressee(message: Message) -> int:
    """The node that a message is for; Flower's own properties take several times as long."""
    node: int = message.__dict__["_metadata"].__dict__["_dst_node_id"]
    return node


def sender(message: Message) -> int:
    """The node that a message comes from; see :func:`addressee`."""
    node: int = message.__dict__["_metadata"].__dict__["_src_node_id"]
    return node


def addressed(message: Message, node: int) -> Message:
    """The same message for another node."""
    metadata = Metadata.__new__(Metadata)
    metadata.__dict__.update(message.metadata.__dict__, _dst_node_id=node)
    return _rebuilt(metadata, message.content)


def answering(asked: Metadata) -> Metadata:
    """Metadata of a reply, as Flower's ``Message`` makes them, without its checks."""
    was, now = asked.__dict__, time.time()
    made = Metadata.__new__(Metadata)
    made.__dict__.update(
        was,
        _message_id="",
        _src_node_id=was["_dst_node_id"],
        _dst_node_id=was["_src_node_id"],
        _src_task_id=was["_dst_task_id"],
        _dst_task_id=was["_src_task_id"],
        _reply_to_message_id=was["_message_id"],
        _created_at=now,
        _ttl=was["_ttl"] - (now - was["_created_at"]),
    )
    return made


def _rebuilt(metadata: Metadata, content: RecordDict) -> Message:
    message = Message.__new__(Message)
    message.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return message
