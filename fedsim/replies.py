"""Replies of clients of this process: most are aggregated without being read one by one.

Flower's constructors check every argument, and a content's records are objects of their own. Here a
reply's metadata are copied from the message it answers, and its content is made when it is read.
"""

import time
from typing import Any

from flwr.app import Message, Metadata, RecordDict
from torch import Tensor

from fedsim.arrays import LocalContent, fill
from fedsim.bundle import Row, row_of
from fedsim.wire import CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND, Upload, to_reply_content

_NUMBER = (float, int)  # and no other type, such as bool
DEADLINE = "deadline"  # how the reason of an error begins that says that a client was too slow


class LocalReply(Message):
    """The reply of one client.

    Args:
        upload: What it says.
        message: What it answers.
        round_: The round of that.
    """

    def __init__(self, upload: Upload, message: Message, round_: int) -> None:
        self.__dict__.update(
            _metadata=answering(message.metadata),
            _content=None,
            _error=None,
            _upload=upload,
            _round=round_,
        )

    @property
    def upload(self) -> Any:
        """What the reply says; None once its content was read, for that can be written to."""
        return self.__dict__["_upload"]

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
            made = LocalContent()
            fill(made, to_reply_content(self.upload, self.round))
            self.__dict__.update(_content=made, _upload=None)
        return made

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.update(_content=value, _upload=None)

    def has_content(self) -> bool:
        """See Flower's ``Message``."""
        return True

    def num_bytes(self) -> int:
        """Memory that the content takes, as :func:`fedsim.wire.content_bytes` counts it."""
        metrics = self.upload.metrics
        names = [*metrics, NUM_EXAMPLES, SERVER_ROUND]
        numbers = sum(len(v) if isinstance(v, list) else 1 for v in metrics.values()) + 2
        total = sum(map(len, names)) + 8 * numbers  # every number travels as 64 bits
        for params in self.upload.records.values():
            for name, tensor in params.items():
                total += len(name) + tensor.numel() * tensor.element_size()
        return total

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.metadata, self.content)


class BlockReply(LocalReply):
    """The reply of one client of a block.

    Args:
        upload: What it says; its tensors are a row of the block's.
        message: What it answers.
        round_: The round of that.
    """

    @property
    def row(self) -> Row:
        """The tensors of the upload."""
        row: Row = self.__dict__["_upload"].records["arrays"]
        return row

    def num_bytes(self) -> int:
        """See :meth:`LocalReply.num_bytes`; the names of the metrics are those of the block."""
        return self.row.bundle.once("bytes", None, lambda: LocalReply.num_bytes(self))


def unread(reply: Message) -> Upload | None:
    """What a reply says, if that is known without reading its content."""
    upload: Upload | None = reply.__dict__.get("_upload")
    return upload


def local_reply(upload: Upload, message: Message, round_: int) -> LocalReply | None:
    """The reply of a client; None if Flower's own constructors must judge whether it may be sent.

    Args:
        upload: What it says.
        message: What it answers.
        round_: The round of that.
    """
    if type(upload.num_examples) not in _NUMBER:
        return None
    plain = True
    for value in upload.metrics.values():
        if type(value) not in _NUMBER:
            plain = False
            if not _is_series(value):
                return None
    if row_of(upload.records) is not None:
        return (BlockReply if plain else LocalReply)(upload, message, round_)
    for record, params in upload.records.items():
        if record in (METRICS, CONFIG) or type(params) is not dict:
            return None
        if not all(type(n) is str and isinstance(t, Tensor) for n, t in params.items()):
            return None
    return LocalReply(upload, message, round_)


def _is_series(value: object) -> bool:
    """Whether it is several numbers of the same type."""
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    return len(kinds) == 1 and kinds.issubset(_NUMBER)


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
