"""A strategy's memory as named tensors and a JSON skeleton: structured, and never pickled.

Plain values stand in the skeleton as they are. Everything else is a list ``[tag, number, ...]``
whose tag names a form below or in :mod:`clients.avalanche_data` and
:mod:`clients.avalanche_modules`. What was met before is ``["again", number]``, so shared and
cyclic references survive; what exists in every process anyway (the model, its weights, functions
given to a constructor) is ``["anchor", name]``.
"""

import importlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.arrays import Params

Node = Any  # None, bool, int, float, str, or a list that begins with a tag
PLAIN = (bool, int, float, str)
SKELETON = "skeleton"  # name of the tensor that holds the JSON text


class Form(ABC):
    """How one kind of value is written down.

    Attributes:
        tag: First entry of the node.
    """

    tag: ClassVar[str]

    @abstractmethod
    def accepts(self, value: Any, encoder: "Encoder") -> bool:
        """Whether the value is of this kind."""

    @abstractmethod
    def encode(self, value: Any, encoder: "Encoder", where: str) -> list[Node]:
        """The entries after tag and number."""

    @abstractmethod
    def decode(self, parts: list[Node], decoder: "Decoder", number: int) -> Any:
        """The value; containers call :meth:`Decoder.made` before they decode their contents."""


class Encoder:
    """Writes values down.

    Args:
        forms: Tried in order.
        anchors: Name of every object that is only referred to, by its ``id``.
        packages: Top-level packages whose objects may be stored attribute by attribute.
        views: Storages (``data_ptr``) of the model's weights, of which nobody may keep views.
    """

    def __init__(
        self,
        forms: list[Form],
        anchors: Mapping[int, str],
        packages: frozenset[str],
        views: frozenset[int],
    ) -> None:
        self.tensors: Params = {}
        self.packages = packages
        self.views = views
        self._forms = forms
        self._anchors = anchors
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # alive, so that no id is used twice

    def value(self, value: Any, where: str) -> Node:
        """The node of a value.

        Args:
            value: Anything.
            where: Path of the value, for the error message.

        Raises:
            TypeError: If no form can hold the value exactly.
        """
        if value is None or type(value) in PLAIN:
            return value
        if id(value) in self._anchors:
            return ["anchor", self._anchors[id(value)]]
        if id(value) in self._numbers:
            return ["again", self._numbers[id(value)]]
        for form in self._forms:
            if form.accepts(value, self):
                number = len(self._kept)
                self._numbers[id(value)] = number
                self._kept.append(value)
                return [form.tag, number, *form.encode(value, self, where)]
        raise TypeError(
            f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be kept"
            " between rounds; leave out the plugin or option that brings it"
        )

    def tensor(self, tensor: Tensor) -> str:
        """Store a copy of a tensor and return its name."""
        name = f"t{len(self.tensors)}"
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name

    def finish(self, root: Node) -> Params:
        """All tensors, with the skeleton among them."""
        text = json.dumps(root, separators=(",", ":")).encode()
        return {**self.tensors, SKELETON: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


class Decoder:
    """Reads what an :class:`Encoder` wrote.

    Args:
        forms: The encoder's forms.
        anchors: The objects by name.
        packages: See :class:`Encoder`.
        params: What :meth:`Encoder.finish` returned.
        device: Where tensors that were there go back to.
    """

    def __init__(
        self,
        forms: list[Form],
        anchors: Mapping[str, Any],
        packages: frozenset[str],
        params: Params,
    ) -> None:
        self.packages = packages
        self._forms = {form.tag: form for form in forms}
        self._anchors = anchors
        self._params = params
        self._made: dict[int, Any] = {}

    def root(self) -> Node:
        """The skeleton."""
        return json.loads(bytes(self._params[SKELETON].numpy()).decode())

    def value(self, node: Node) -> Any:
        """The value of a node; fresh, except for anchors."""
        if not isinstance(node, list):
            return node
        tag, number, *parts = node
        if tag == "anchor":
            return self._anchors[number]
        if tag == "again":
            return self._made[number]
        value = self._forms[tag].decode(parts, self, number)
        self._made[number] = value
        return value

    def made(self, number: int, value: Any) -> None:
        """Say early what a number will stand for, so that contents may refer to it."""
        self._made[number] = value

    def tensor(self, name: str) -> Tensor:
        """A writable copy of a stored tensor."""
        return self._params[name].clone()


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
        tensor = decoder.tensor(name).to(device, getattr(torch, dtype))
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


def qualified(thing: Any) -> str | None:
    """``module:name`` by which the very same class or function can be imported, or None."""
    name = getattr(thing, "__name__", "")
    if name and getattr(torch, name, None) is thing:  # torch's functions do not say where they are
        return f"torch:{name}"
    path = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    try:
        return path if imported(path) is thing else None
    except (ImportError, AttributeError, ValueError):
        return None


def imported(path: str) -> Any:
    """The class or function that ``module:name`` stands for."""
    module, name = path.split(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
