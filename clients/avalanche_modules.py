"""Models for :mod:`fedsim.codec`: what a strategy adds to the shared one, and copies."""

import copy
from typing import Any

from torch import Tensor, nn

from fedsim.codec import PLAIN, Decoder, Encoder, Form, Node

INTERNAL = frozenset(vars(nn.Module()))


class Blueprint:
    """A model as it was built: its modules and the attributes on them.

    Only what differs is stored: tensors that are not the shared weights, attributes that plugins
    hang on modules, which parameters are frozen and which modules train.

    Args:
        module: The strategy's model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kinds = _kinds(module)
        self._slots = {
            (name, key): tensor
            for name, part in module.named_modules()
            for key, tensor in _tensors(part).items()
        }
        self._extras = {
            name: {k: copy.deepcopy(v) if _is_plain(v) else v for k, v in _attributes(part).items()}
            for name, part in module.named_modules()
        }

    def describe(self, module: nn.Module, encoder: Encoder, where: str) -> Node:
        """What distinguishes the model, or a copy of it, from how it was built.

        Raises:
            TypeError: If the module has another architecture.
        """
        if _kinds(module) != self._kinds:
            raise TypeError(
                f"{where}: a {type(module).__name__} of another architecture than the client's"
                " model cannot be kept between rounds"
            )
        live = module is self.module
        tensors = [
            [name, key, encoder.value(tensor, f"{where}.{name}.{key}")]
            for name, part in module.named_modules()
            for key, tensor in _tensors(part).items()
            if not (live and self._slots.get((name, key), self) is tensor)
        ]
        extras = [
            [name, key, encoder.value(value, f"{where}.{name}.{key}")]
            for name, part in module.named_modules()
            for key, value in _attributes(part).items()
            if not _unchanged(value, self._extras[name].get(key, self))
            # an activation that the next forward pass overwrites
            and not (isinstance(value, Tensor) and value.grad_fn is not None)
        ]
        modes = [int(part.training) for part in module.modules()]
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        return {"tensors": tensors, "extras": extras, "modes": modes, "frozen": frozen}

    def apply(self, module: nn.Module, node: Node, decoder: Decoder) -> None:
        """Make the model, or a copy of it, what was described."""
        self.reset(module)
        parts = dict(module.named_modules())
        for name, key, tensor in node["tensors"]:
            part = parts[name]
            kind = part._parameters if key in part._parameters else part._buffers
            kind[key] = decoder.value(tensor)
        for name, key, value in node["extras"]:
            parts[name].__dict__[key] = decoder.value(value)
        for part, mode in zip(parts.values(), node["modes"], strict=True):
            part.training = bool(mode)
        frozen = set(node["frozen"])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def reset(self, module: nn.Module) -> None:
        """Undo what plugins hung on the modules; the live model gets its shared weights back."""
        live = module is self.module
        for name, part in module.named_modules():
            for key in _attributes(part).keys() - self._extras[name].keys():
                del part.__dict__[key]
            for key, value in self._extras[name].items():
                if live or _is_plain(value):  # a copy keeps its own copies of other things
                    part.__dict__[key] = copy.deepcopy(value) if _is_plain(value) else value
            for key in _tensors(part) if live else ():
                kind = part._parameters if key in part._parameters else part._buffers
                kind[key] = self._slots[(name, key)]

    def copy(self) -> nn.Module:
        """A module of the same architecture."""
        return copy.deepcopy(self.module)


class ModuleForm(Form):
    """Copies of the model, such as the teacher of a distillation.

    Args:
        blueprint: The architecture that they must have.
    """

    tag = "module"

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        del encoder
        return isinstance(value, nn.Module)

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        return [self._blueprint.describe(value, encoder, where)]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        module = self._blueprint.copy()
        decoder.made(number, module)
        self._blueprint.apply(module, parts[0], decoder)
        return module


def _kinds(module: nn.Module) -> list[tuple[str, type, list[str]]]:
    """Name and class of every module inside, and the names of its tensors."""
    return [(name, type(m), list(_tensors(m))) for name, m in module.named_modules()]


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own parameters and buffers."""
    return {**module._parameters, **module._buffers}


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the module's class or a plugin keeps on it, besides what every module has."""
    return {key: value for key, value in vars(module).items() if key not in INTERNAL}


def _is_plain(value: Any) -> bool:
    """Whether a value is made of numbers and strings only, so that it can be compared."""
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    if type(value) is dict:
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return value is None or type(value) in PLAIN


def _unchanged(value: Any, built: Any) -> bool:
    if _is_plain(value) and _is_plain(built):
        return type(value) is type(built) and bool(value == built)
    return value is built
