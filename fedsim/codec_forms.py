"""Forms of :mod:`fedsim.codec` for tensors, arrays, containers and data classes."""

import dataclasses
import sys
from collections import OrderedDict, defaultdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.codec import Decoder, Encoder, Form, Node


class TensorForm(Form):
    """Tensors and parameters without history: values, type, device and whether they learn."""

    tag = "tensor"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return isinstance(value, Tensor)

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        if value.grad_fn is not None:
            raise TypeError(f"{where}: a tensor with its autograd graph cannot be kept")
        if value.numel() and value.untyped_storage().data_ptr() in encoder.views:
            raise TypeError(
                f"{where}: a view of the model's own weights would change with every download"
            )
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        dtype = str(value.dtype).removeprefix("torch.")
        return [encoder.tensor(value), kind, dtype, str(value.device), value.requires_grad]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del number
        name, kind, dtype, device, learns = parts
        wanted = getattr(torch, dtype, None)
        if not isinstance(wanted, torch.dtype):
            raise ValueError(f"torch.{dtype} is no type of tensors")
        tensor = decoder.tensor(name).to(torch.device(device), wanted)
        if kind == "parameter":
            return nn.Parameter(tensor, requires_grad=learns)
        return tensor.requires_grad_(learns)


class NumpyForm(Form):
    """NumPy arrays and scalars of the types that torch shares."""

    tag = "numpy"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        del where
        tensor = torch.from_numpy(np.array(value))
        return [encoder.tensor(tensor), isinstance(value, np.generic)]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del number
        array = decoder.tensor(parts[0]).numpy()
        return array[()] if parts[1] else array


class SequenceForm(Form):
    """Lists, tuples and sets, in the order in which they are iterated."""

    tag = "sequence"
    types: ClassVar[dict[str, type]] = {t.__name__: t for t in (list, tuple, set, frozenset)}

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return type(value) in self.types.values()

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        items = [encoder.value(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return [type(value).__name__, items]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        name, items = parts
        if name != "list":
            return self.types[name]([decoder.value(item) for item in items])
        made: list[Any] = []
        decoder.made(number, made)
        made.extend(decoder.value(item) for item in items)
        return made


class MappingForm(Form):
    """Dictionaries, ordered or with a default, whose keys can be stored as well."""

    tag = "mapping"
    types: ClassVar[dict[str, type]] = {t.__name__: t for t in (dict, OrderedDict, defaultdict)}

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return type(value) in self.types.values()

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        factory = encoder.value(getattr(value, "default_factory", None), f"{where}.default_factory")
        items = [
            [encoder.value(k, f"{where} key {k!r}"), encoder.value(v, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return [type(value).__name__, factory, items]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        name, factory, items = parts
        made: Any = self.types[name]()
        if name == "defaultdict":
            made.default_factory = decoder.value(factory)
        decoder.made(number, made)
        for key, value in items:
            made[decoder.value(key)] = decoder.value(value)
        return made


class BytesForm(Form):
    """Bytes, as a tensor of their values."""

    tag = "bytes"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return type(value) is bytes

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        del where
        return [encoder.tensor(torch.tensor(list(value), dtype=torch.uint8))]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del number
        return decoder.tensor(parts[0]).numpy().tobytes()


class DataclassForm(Form):
    """Data classes of the packages at hand, field by field.

    Reading imports nothing and runs no constructor: a class must have been imported before, must be
    a data class, and gets the fields that it had.
    """

    tag = "dataclass"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        cls = type(value)
        known = cls.__module__.split(".")[0] in encoder.packages
        return known and dataclasses.is_dataclass(cls) and _loaded(_path(cls)) is cls

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        names = [field.name for field in dataclasses.fields(value)]
        extra = getattr(value, "__dict__", {}).keys() - set(names)
        if extra:
            raise TypeError(f"{where}: {', '.join(sorted(extra))} is no field of the data class")
        items = [[name, encoder.value(getattr(value, name), f"{where}.{name}")] for name in names]
        return [_path(type(value)), items]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        path, items = parts
        cls = _loaded(path) if path.split(".")[0].split(":")[0] in decoder.packages else None
        if cls is None:
            raise ValueError(f"{path} is no data class of the method")
        if [name for name, _ in items] != [field.name for field in dataclasses.fields(cls)]:
            raise ValueError(f"{path} has other fields now")
        made: Any = object.__new__(cls)
        decoder.made(number, made)
        for name, node in items:
            object.__setattr__(made, name, decoder.value(node))
        return made


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _loaded(path: str) -> type | None:
    """The data class that ``module:name`` stands for, if its module has been imported."""
    module, _, name = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None
