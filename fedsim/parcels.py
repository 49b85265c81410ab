"""Objects between processes of this machine, their tensors beside them in memory without a name.

A parcel is one file that lives in memory only: the tensors' bytes, then a pickle that refers to
them. A socket carries the file's descriptor, so that no send waits for the other side to read, and
a file that several processes map is in memory once. Pickle is safe here: both ends are processes of
this run, on a socket that nobody else can open.
"""

import io
import math
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedsim.arrays import TensorArray

Shared = Mapping[int, ArrayRecord]  # records that the other side has already, by number
_ALIGNED = 64  # bytes; where a tensor may begin
_MOST_PARTS = 512  # of one system call
_HEADER = struct.Struct("<BQQ")  # kind, place and length of the pickle


@dataclass(frozen=True, slots=True)
class Parcel:
    """A packed object.

    Attributes:
        file: Descriptor of the file; the owner closes it.
        start: Where the pickle begins.
        length: Bytes of the pickle.
    """

    file: int
    start: int
    length: int


def pack(value: Any, known: Mapping[int, int] | None = None) -> Parcel:
    """Pack an object.

    Args:
        value: Anything that can be pickled.
        known: Numbers of the records that the other side has already, by their ``id``.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, known or {})
    pickler.dump(value)
    content = stream.getbuffer()
    file = _memory_file()
    try:
        _write(file, [*pickler.parts, content])
    except BaseException:
        os.close(file)
        raise
    return Parcel(file, pickler.size, len(content))


def unpack(parcel: Parcel, shared: Shared | None = None) -> Any:
    """The object, with tensors of its own."""
    return _Unpickler(parcel, shared or {}, copies=True).load()


def unpack_shared(parcel: Parcel) -> Any:
    """The object; its tensors lie in the file itself, and what is written to them stays private."""
    return _Unpickler(parcel, {}, copies=False).load()


def send(connection: socket.socket, kind: int, parcel: Parcel) -> None:
    """Send a parcel; its file stays with the sender, too."""
    header = _HEADER.pack(kind, parcel.start, parcel.length)
    socket.send_fds(connection, [header], [parcel.file])


def receive(connection: socket.socket) -> tuple[int, Parcel]:
    """The next parcel and its kind; its file is the receiver's to close.

    Raises:
        EOFError: If the other side is gone.
    """
    header, files, _, _ = socket.recv_fds(connection, _HEADER.size, 1)
    while header and len(header) < _HEADER.size:
        header += connection.recv(_HEADER.size - len(header)) or _gone()
    if not header or not files:
        _gone()
    kind, start, length = _HEADER.unpack(header)
    return kind, Parcel(files[0], start, length)


def _gone() -> bytes:
    raise EOFError("the other process is gone")


class _Pickler(pickle.Pickler):
    """Leaves tensors out and notes where in the file they will be."""

    def __init__(self, stream: io.BytesIO, known: Mapping[int, int]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[Any] = []
        self.size = 0
        self._known = known

    def persistent_id(self, value: Any) -> Any:
        """What stands for a tensor or a known record; None for all else."""
        kind = type(value)
        if kind is TensorArray:
            return self._place(value.tensor)
        if kind is ArrayRecord:
            return self._known.get(id(value))
        return None

    def _place(self, tensor: Tensor) -> tuple[int, str, tuple[int, ...]]:
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())
        place = self.size
        if values.size:
            filling = -values.nbytes % _ALIGNED
            self.parts += [values.reshape(-1).view(np.uint8), bytes(filling)]
            self.size += values.nbytes + filling
        return place, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


class _Unpickler(pickle.Unpickler):
    """Puts tensors and known records back."""

    def __init__(self, parcel: Parcel, shared: Shared, *, copies: bool) -> None:
        self._file = mmap.mmap(parcel.file, 0, access=mmap.ACCESS_COPY)
        end = parcel.start + parcel.length
        super().__init__(io.BytesIO(memoryview(self._file)[parcel.start : end]))
        self._shared, self._copies = shared, copies

    def persistent_load(self, reference: Any) -> Any:
        """The record or array that the reference stands for."""
        if isinstance(reference, int):
            return self._shared[reference]
        place, name, shape = reference
        dtype = getattr(torch, name)
        count = math.prod(shape)
        if count == 0:
            return TensorArray(torch.empty(shape, dtype=dtype))
        values = torch.frombuffer(self._file, dtype=dtype, count=count, offset=place).view(shape)
        return TensorArray(values.clone() if self._copies else values)


def _memory_file() -> int:
    """Descriptor of a new file without a name, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedsim", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(file: int, parts: list[Any]) -> None:
    """Write all bytes, in few system calls."""
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        written = os.writev(file, views[:_MOST_PARTS])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
