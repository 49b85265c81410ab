"""Forms of :mod:`fedsim.codec` for objects, functions, data sets and loaders."""

import operator
import types
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from clients.avalanche_state import REFERENCES, class_named, qualified
from fedsim.codec import Decoder, Encoder, Form, Node

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


class ReferenceForm(Form):
    """Classes and functions that do no harm whoever names them; others must be anchors."""

    tag = "reference"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return isinstance(value, FUNCTIONS) and REFERENCES.get(qualified(value)) is value

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        del encoder, where
        return [qualified(value)]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del decoder, number
        if parts[0] not in REFERENCES:
            raise ValueError(f"the stored state names {parts[0]}, which may not be called")
        return REFERENCES[parts[0]]


class TorchForm(Form):
    """Devices, types and shapes."""

    tag = "torch"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return isinstance(value, torch.device | torch.dtype | torch.Size)

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        del encoder, where
        if isinstance(value, torch.Size):
            return ["Size", list(value)]
        return [type(value).__name__, str(value).removeprefix("torch.")]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del decoder, number
        kind, content = parts
        if kind == "Size":
            return torch.Size(content)
        found = torch.device(content) if kind == "device" else getattr(torch, content, None)
        if not isinstance(found, torch.device | torch.dtype):
            raise ValueError(f"torch.{content} is no type of tensors")
        return found


class ObjectForm(Form):
    """Objects of Avalanche's classes and of the plugins' own packages, attribute by attribute."""

    tag = "object"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        cls = type(value)
        special = ("__reduce__", "__reduce_ex__", "__getstate__")
        plain = not any(name in vars(c) for c in cls.__mro__[:-1] for name in special)
        builtin = isinstance(value, list | dict | set | tuple | torch.nn.Module)
        ours = cls.__module__.split(".")[0] in encoder.packages
        return ours and plain and not builtin and hasattr(value, "__dict__")

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        cls = type(value)
        if qualified(cls) is None:
            raise TypeError(f"{where}: the class {cls.__qualname__} cannot be imported by name")
        path = where if where.endswith(cls.__name__) else f"{where} ({cls.__name__})"
        items = [[name, encoder.value(v, f"{path}.{name}")] for name, v in vars(value).items()]
        return [qualified(cls), items]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        path, items = parts
        made: Any = object.__new__(class_named(path, decoder.packages))
        decoder.made(number, made)
        vars(made).update({name: decoder.value(node) for name, node in items})
        return made


class LoaderForm(Form):
    """Torch's data loaders in this process, in stored or in shuffled order."""

    tag = "loader"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return type(value) is DataLoader

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        sampler = value.sampler
        shuffled = type(sampler) is RandomSampler and sampler.generator is None
        if not shuffled and type(sampler) is not SequentialSampler:
            raise TypeError(f"{where}: a loader with its own sampler or generator cannot be kept")
        if value.num_workers or value.batch_size is None:
            raise TypeError(f"{where}: a loader with workers or its own batches cannot be kept")
        return [
            encoder.value(value.dataset, f"{where}.dataset"),
            encoder.value(value.collate_fn, f"{where}.collate_fn"),
            {
                "batch_size": value.batch_size,
                "shuffle": shuffled,
                "drop_last": value.drop_last,
                "pin_memory": value.pin_memory,
            },
        ]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        del number
        dataset, collate, options = parts
        examples = decoder.value(dataset)  # in the order in which they were written
        return DataLoader(examples, collate_fn=decoder.value(collate), **options)


class EndlessForm(Form):
    """Iterators over loaders, which begin anew in every round.

    Avalanche draws replayed batches from a loader that is iterated for ever; the place inside the
    current pass is not kept.
    """

    tag = "endless"

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        if isinstance(value, types.GeneratorType):
            return value.gi_frame is not None and _loop_of(value) is not None
        return isinstance(value, type(iter([]))) and operator.length_hint(value) == 0

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        loop = _loop_of(value) if isinstance(value, types.GeneratorType) else None
        if loop is None:
            return ["empty", None]
        kind, loader = loop
        return [kind, encoder.value(loader, f"{where}.loader")]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        from avalanche.training.utils import cycle

        del number
        kind, loader = parts
        if kind == "empty":
            return iter([])
        return cycle(decoder.value(loader)) if kind == "cycle" else iter(decoder.value(loader))


def _loop_of(generator: Any) -> tuple[str, Any] | None:
    """Which of Avalanche's loops a generator runs, and over which loader."""
    from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
    from avalanche.training.utils import cycle

    names = generator.gi_frame.f_locals
    if generator.gi_code is cycle.__code__:
        return "cycle", names["loader"]
    if generator.gi_code is MultiDatasetDataLoader.__iter__.__code__:
        return "iterator", names["self"]
    return None
