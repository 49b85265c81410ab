"""The whole memory of a strategy and its plugins, put into a client's state and taken out again."""

import functools
import logging
import types
from typing import Any

from torch import Tensor, nn

from clients.avalanche_data import ClientStream, DatasetForm
from clients.avalanche_forms import EndlessForm, LoaderForm, ObjectForm, ReferenceForm, TorchForm
from clients.avalanche_modules import Blueprint, ModuleForm
from fedsim.arrays import Params
from fedsim.codec import Decoder, Encoder, Form, Node
from fedsim.codec_forms import MappingForm, NumpyForm, SequenceForm, TensorForm

# Attributes of the strategy that are set anew before anybody reads them: the model and optimiser
# by us, the others by Avalanche's training loop in every iteration.
TRANSIENT = frozenset(
    ["model", "optimizer", "experience", "mbatch", "mb_output", "loss", "batch_logits"]
    + [f"mb_buffer_{name}" for name in ("x", "y", "tid", "out")]
)
CONSTANT = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    type,
    functools.partial,
    logging.Logger,
    nn.Module,
)


class ConstantForm(Form):
    """Things without a memory that a constructor was given: functions, loggers, criteria.

    They are the same in every process, so their names stand for them. Only what is there when the
    strategy is built counts; one that turns up later is an error.
    """

    tag = "constant"

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        if isinstance(value, nn.Module):
            return not any(True for _ in [*value.parameters(), *value.buffers()])
        return isinstance(value, CONSTANT)

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        del encoder, where
        self.found[f"constant-{len(self.found)}"] = value
        return []

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """Never called: constants are anchors by the time a state is read."""
        raise NotImplementedError


class Memory:
    """Reads and writes the memory of one strategy object, which serves many clients in turn.

    Args:
        strategy: As it was built, before any training.
        fixed: Objects that have no memory or are not the strategy's, by name.

    Raises:
        TypeError: If an attribute cannot be stored; the message names plugin and attribute.
    """

    def __init__(self, strategy: Any, fixed: dict[str, Any]) -> None:
        self._strategy = strategy
        self.blueprint = Blueprint(strategy.model)
        owners = [strategy, *strategy.plugins]
        self._packages = frozenset(
            cls.__module__.split(".")[0]
            for owner in owners
            for cls in type(owner).__mro__
            if cls.__module__ not in ("builtins", "typing", "abc")
        )
        weights = {
            **dict(strategy.model.named_parameters()),
            **dict(strategy.model.named_buffers()),
        }
        self._anchors = {
            **fixed,
            "strategy": strategy,
            "model": strategy.model,
            **{f"module {name}": m for name, m in strategy.model.named_modules() if name},
            **{f"weight {name}": tensor for name, tensor in weights.items()},
        }
        self._views = frozenset(_storage(w) for w in weights.values() if w.numel())
        self._transient = {k: v for k, v in vars(strategy).items() if k in TRANSIENT}
        constants = ConstantForm()
        self._write([constants, *_forms(None, self.blueprint)])
        self._anchors.update(constants.found)
        self._built = self._write(_forms(None, self.blueprint))

    def write(self, stream: ClientStream) -> Params:
        """Everything the strategy and its plugins remember.

        Raises:
            TypeError: If an attribute cannot be stored; the message names plugin and attribute.
        """
        return self._write(_forms(stream, self.blueprint))

    def read(self, params: Params | None, stream: ClientStream) -> None:
        """Make the strategy remember ``params``; None is how it was built."""
        forms = _forms(stream, self.blueprint)
        stored = self._built if params is None else params
        decoder = Decoder(forms, self._anchors, self._packages, stored)
        root = decoder.root()
        strategy = self._strategy
        vars(strategy).clear()
        vars(strategy).update(self._transient)
        strategy.model = self.blueprint.module
        self.blueprint.apply(strategy.model, root["model"], decoder)
        for name, node in root["strategy"]:
            vars(strategy)[name] = decoder.value(node)

    def _write(self, forms: list[Form]) -> Params:
        ids = {id(thing): name for name, thing in self._anchors.items()}
        encoder = Encoder(forms, ids, self._packages, self._views)
        strategy = self._strategy
        kind = type(strategy).__name__
        root = {
            "model": self.blueprint.describe(strategy.model, encoder, f"{kind}.model"),
            "strategy": [
                [name, encoder.value(value, f"{kind}.{name}")]
                for name, value in vars(strategy).items()
                if name not in TRANSIENT
            ],
        }
        return encoder.finish(root)


def _forms(stream: ClientStream | None, blueprint: Blueprint) -> list[Form]:
    """All forms, the more special first."""
    return [
        ReferenceForm(),
        TorchForm(),
        TensorForm(),
        NumpyForm(),
        SequenceForm(),
        MappingForm(),
        DatasetForm(stream),
        LoaderForm(),
        EndlessForm(),
        ModuleForm(blueprint),
        ObjectForm(),
    ]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
