"""Tensors inside Flower records, without serialising them while they stay in this process.

Flower's ``Array`` holds NumPy's ``.npy`` bytes. Writing and reading them is two thirds of what an
in-process engine costs, and nobody needs the bytes unless a message leaves the process.
:class:`TensorArray` is an ``Array`` that holds the tensor and makes the bytes when asked.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

Params = dict[str, Tensor]
Records = dict[str, Params]

_NUMPY_TYPE = "numpy.ndarray"  # Flower's name for arrays stored as .npy bytes
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|=]?[biufc]\d{1,2})', "
    rb"'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


class TensorArray(Array):
    """A Flower ``Array`` backed by a CPU tensor.

    Nobody may write to the tensor of a ``TensorArray``: it can be shared by many messages.
    ``numpy()`` therefore returns a copy, as Flower's own arrays do.
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type
            tensor = tensor.float()
        self.__dict__["tensor"] = tensor  # all else is derived when asked: few ever ask

    @property
    def tensor(self) -> Tensor:
        """The values; read only."""
        tensor: Tensor = self.__dict__["tensor"]
        return tensor

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """NumPy's name of the type."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the values."""
        return tuple(self.tensor.shape)

    @property
    def stype(self) -> str:  # type: ignore[override]
        """Flower's name of the form of ``data``."""
        return _NUMPY_TYPE

    @property
    def data(self) -> bytes:
        """The ``.npy`` bytes, made on first use."""
        if self.__dict__.get("_bytes") is None:
            self.__dict__["_bytes"] = Array.from_numpy_ndarray(self.tensor.numpy()).data
        content: bytes = self.__dict__["_bytes"]
        return content

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_bytes"] = value
        self.__dict__["tensor"] = torch.from_numpy(_read_npy(value).copy())

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A copy of the values."""
        return self.tensor.numpy().copy()

    def deflate(self) -> bytes:
        """See Flower's ``Array``; on the wire this is one, and its runtime knows no other kind."""
        plain = Array(self.dtype, self.shape, self.stype, self.data)
        plain.__dict__["_chunks"] = self.slice_array()
        return plain.deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def _read_npy(data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    """A read-only view of ``.npy`` bytes.

    Only plain arrays of numbers are read, and only if the bytes are as many as the header says: a
    header alone can make nobody allocate, and nothing is ever unpickled.

    Raises:
        ValueError: If the bytes are anything else.
    """
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("the bytes are no plain NumPy array of numbers")
    descr, fortran, inner = (part.decode() for part in header.groups()[1:])
    offset = 10 + int.from_bytes(header.group(1), "little")
    shape = tuple(int(n) for n in inner.split(",") if n.strip())
    dtype = np.dtype(descr)
    stated, came = math.prod(shape) * dtype.itemsize, len(data) - offset
    if stated != came or header.end() != offset:
        raise ValueError(f"the array's header promises {stated} bytes, and {came} came")
    flat = np.frombuffer(data, dtype, offset=offset)
    return flat.reshape(shape, order="F" if fortran == "True" else "C")


def to_tensor(array: Array) -> Tensor:
    """The values of an array; read only, since the memory may be shared.

    Raises:
        ValueError: If the array is not stored as NumPy bytes, or they are damaged.
    """
    if isinstance(array, TensorArray):
        return array.tensor
    if array.stype != _NUMPY_TYPE:
        raise ValueError(f"expected an array stored as {_NUMPY_TYPE!r}, got {array.stype!r}")
    try:
        return torch.from_numpy(_read_npy(array.data).copy())  # torch warns of read-only memory
    except TypeError as error:  # a type that NumPy has and torch has not
        raise ValueError(str(error)) from error


def to_record(params: Params) -> ArrayRecord:
    """An ``ArrayRecord`` over the same memory: nothing is copied or serialised."""
    record = ArrayRecord()
    return fill(record, {name: TensorArray(_plain(t)) for name, t in params.items()})


def _plain(tensor: Tensor) -> Tensor:
    """The values on the CPU, contiguous and without a gradient; most tensors already are."""
    if tensor.is_cpu and not tensor.requires_grad and tensor.is_contiguous():
        return tensor
    return tensor.detach().cpu().contiguous()


def to_params(record: ArrayRecord) -> Params:
    """The tensors of a record; read only, since the memory may be shared."""
    return {name: to_tensor(array) for name, array in record.items()}


def decoded(record: ArrayRecord) -> ArrayRecord:
    """The same record with every array decoded, so that each reader pays nothing.

    Arrays that cannot be decoded stay as they are.
    """
    if all(isinstance(array, TensorArray) for array in record.values()):
        return record
    out = ArrayRecord()
    for name, array in record.items():
        try:
            out[name] = TensorArray(to_tensor(array))
        except ValueError:
            out[name] = array
    return out


_Filled = TypeVar("_Filled", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)


def fill(record: _Filled, values: Mapping[str, Any]) -> _Filled:
    """Put values of the right types into a record.

    Flower checks the types at every assignment, which takes longer than a client's message may.
    """
    record.__dict__["_data"].update(values)
    return record


class LocalContent(RecordDict):
    """The content of a message in this process, read by strategies several times over.

    Flower makes ``array_records`` and its siblings anew at every access, with every check; here
    they are made without. They still write through to the content.

    Attributes:
        known: What was read from it; forgotten when it is written to.
    """

    known: Any = None

    def __setitem__(self, key: Any, value: Any) -> None:
        self.known = None
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.known = None
        super().__delitem__(key)

    @classmethod
    def of(cls, content: RecordDict) -> "LocalContent":
        """The same records."""
        local = cls()
        fill(local, content.__dict__["_data"])
        return local

    @property
    def array_records(self) -> Any:
        """See Flower's ``RecordDict``."""
        return self._view(ArrayRecord)

    @property
    def metric_records(self) -> Any:
        """See Flower's ``RecordDict``."""
        return self._view(MetricRecord)

    @property
    def config_records(self) -> Any:
        """See Flower's ``RecordDict``."""
        return self._view(ConfigRecord)

    def _view(self, kind: type) -> Any:
        view = _VIEW(self, kind)
        records: dict[str, Any] = self.__dict__["_data"]
        view.__dict__["_data"].update((n, r) for n, r in records.items() if isinstance(r, kind))
        return view


_VIEW: Any = type(RecordDict().array_records)


def write_into(slots: Params, arrays: Params) -> None:
    """Copy the values of a full set of tensors into the tensors of a model.

    Raises:
        ValueError: If names or shapes differ.
    """
    if arrays.keys() != slots.keys():
        wrong = sorted(arrays.keys() ^ slots.keys())
        raise ValueError(f"the download's tensors are not the model's: {', '.join(wrong[:5])}")
    values = [arrays[name] for name in slots]
    for (name, slot), value in zip(slots.items(), values, strict=True):
        if slot.shape != value.shape:
            want, got = tuple(slot.shape), tuple(value.shape)
            raise ValueError(f"{name!r}: expected shape {want}, got {got}")
    with torch.no_grad():
        torch._foreach_copy_(list(slots.values()), values)


def num_bytes(params: Params) -> int:
    """Size of the values in bytes: elements times element size, without any header."""
    return sum(t.numel() * t.element_size() for t in params.values())
