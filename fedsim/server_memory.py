"""What the server side of a method remembers, and Flower's records, for :mod:`fedsim.codec`."""

import functools
import types
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedsim.arrays import Params, TensorArray, fill, to_tensor
from fedsim.codec import Decoder, Encoder, Form, Node
from fedsim.codec_forms import (
    BytesForm,
    DataclassForm,
    MappingForm,
    NumpyForm,
    SequenceForm,
    TensorForm,
)
from fedsim.strategy import Strategy
from fedsim.tables import Row

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type,
)


_CONSTANT = (int, float, str, bytes, type(None))


class RecordForm(Form):
    """Flower's records: arrays as tensors, everything else as it is."""

    tag = "record"
    kinds: ClassVar[dict[str, type]] = {
        kind.__name__: kind for kind in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict)
    }

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`fedsim.codec.Form`."""
        del encoder
        return isinstance(value, tuple(self.kinds.values()))

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`fedsim.codec.Form`."""
        kind = next(name for name, cls in self.kinds.items() if isinstance(value, cls))
        plain = to_tensor if kind == "ArrayRecord" else lambda entry: entry
        return [kind, [[n, encoder.value(plain(v), f"{where}.{n}")] for n, v in value.items()]]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`fedsim.codec.Form`."""
        del number
        kind, items = parts
        values = {str(name): decoder.value(node) for name, node in items}
        if kind != "ArrayRecord":
            return self.kinds[kind](values)  # checks the types
        if not all(isinstance(value, Tensor) for value in values.values()):
            raise ValueError("an array record holds something else than tensors")
        return fill(ArrayRecord(), {name: TensorArray(t) for name, t in values.items()})


FORMS: tuple[Form, ...] = (
    TensorForm(),
    NumpyForm(),
    RecordForm(),
    SequenceForm(),
    MappingForm(),
    BytesForm(),
    DataclassForm(),
)


def packages_of(strategy: FlowerStrategy) -> frozenset[str]:
    """Top-level packages whose data classes a strategy may hold: its own and fedsim's."""
    modules = [cls.__module__ for cls in type(strategy).__mro__]
    return frozenset(["fedsim", *(m.split(".")[0] for m in modules)]) - {"builtins", "typing"}


def memory_of(strategy: FlowerStrategy) -> dict[str, Any]:
    """What a strategy remembers, by attribute.

    fedsim's strategies remember their ``state`` and nothing else. Of others all attributes are
    taken, those of a strategy inside them too, except functions, which a constructor was given.
    """
    if isinstance(strategy, Strategy):
        return {"state": strategy.state}
    return {
        name: memory_of(value) if isinstance(value, FlowerStrategy) else value
        for name, value in vars(strategy).items()
        if not isinstance(value, _FUNCTIONS)
    }


def set_memory(strategy: FlowerStrategy, memory: dict[str, Any]) -> None:
    """Make a strategy that was just built remember what another one of its kind did.

    Raises:
        ValueError: If the memory is not one of such a strategy.
    """
    if isinstance(strategy, Strategy):
        strategy.state = memory["state"]
        return
    for name, value in memory.items():
        inside = getattr(strategy, name, None)
        if isinstance(inside, FlowerStrategy):
            set_memory(inside, value)
        elif callable(inside):
            raise ValueError(f"{type(strategy).__name__}.{name} is no attribute that is kept")
        else:
            setattr(strategy, name, value)


def encoded(value: Any, packages: frozenset[str], where: str) -> Params:
    """A value as tensors with the skeleton among them, independent of the original.

    Raises:
        TypeError: If a part of it cannot be kept; the text names the part.
    """
    encoder = Encoder(FORMS, {}, packages, frozenset())
    return encoder.finish(encoder.value(value, where))


class Snapshot:
    """The end of a round, which later rounds do not change.

    Arrays and a fedsim strategy's state are never written to, so they need no copy, nor do numbers
    and words; other strategies may write to what they hold.
    """

    def __init__(
        self,
        round_: int,
        arrays: ArrayRecord,
        strategy: FlowerStrategy,
        results: Row,
        wall_s: float,
    ) -> None:
        self.round, self.results, self.wall_s = round_, results, wall_s
        self._packages = packages_of(strategy)
        self._value = {"arrays": arrays, "strategy": memory_of(strategy)}
        self._copy: Params | None = None
        held = self._value["strategy"]
        if "state" not in held and not all(isinstance(v, _CONSTANT) for v in held.values()):
            self._copy = encoded(self._value, self._packages, type(strategy).__name__)

    def server(self) -> Params:
        """What the server holds, encoded."""
        if self._copy is None:
            self._copy = encoded(self._value, self._packages, "the server")
        return self._copy
