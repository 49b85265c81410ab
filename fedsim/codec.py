"""Values as named tensors and a JSON skeleton: structured, and never pickled.

Plain values stand in the skeleton as they are. Everything else is a list ``[tag, number, ...]``
whose tag names a form, such as those in :mod:`fedsim.codec_forms`. What was met before is
``["again", number]``, so shared and cyclic references survive; what exists in every process anyway
(the model, its weights, functions given to a constructor) is ``["anchor", name]``.

Reading makes only what the forms make: no function that a skeleton names is called, and nothing it
names is imported, unless a form does so and says why that is safe.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

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
        forms: Sequence[Form],
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
        forms: Sequence[Form],
        anchors: Mapping[str, Any],
        packages: frozenset[str],
        params: Params,
    ) -> None:
        self.packages = packages
        self._forms = {form.tag: form for form in forms}
        self._anchors = anchors
        self._params = params
        self._made: dict[int, Any] = {}
        self._taken: set[str] = set()

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
        """A writable copy of a stored tensor.

        Raises:
            ValueError: If it was taken before; a skeleton could otherwise ask for any memory.
        """
        if name in self._taken or name == SKELETON:
            raise ValueError(f"the skeleton uses the tensor {name!r} twice")
        self._taken.add(name)
        return self._params[name].clone()
