"""Values of a configuration beside the types that what they go to declares for its arguments."""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from fedsim.checks import ConfigError, Node

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    type(None): "null",
}


def check_arguments(node: Node, name: str) -> None:
    """See to it that every value of a part is of a type that its target declares.

    Only numbers, words, booleans, null and lists of them are judged, and only where the target
    says what it takes; what values are allowed is the target's own affair.

    Args:
        node: The configuration.
        name: The part.

    Raises:
        ConfigError: At the first value of another type; the text names its key.
    """
    for path, target, arguments in _targets(node[name], name):
        hints = _hints(target)
        for key, value in arguments.items():
            hint = hints.get(key, Any)
            if not _fits(value, hint):
                said = _place(node, path, arguments, key)
                raise ConfigError(f"{said} must be {_expected(hint)}, got {_shown(value)}")


def _targets(part: Any, path: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Whatever is called in a part, innermost first: where, what, and with what."""
    if isinstance(part, list):
        for number, item in enumerate(part):
            yield from _targets(item, f"{path}[{number}]")
    if not isinstance(part, Mapping):
        return
    for key, value in part.items():
        yield from _targets(value, f"{path}.{key}")
    if "_target_" in part:
        try:
            target = resolve_name(part["_target_"])
        except Exception:  # whoever makes the part says what is wrong
            return
        yield path, target, {k: v for k, v in part.items() if not k.startswith("_")}


def _hints(target: Any) -> dict[str, Any]:
    """The types of a target's arguments, of those that can be known."""
    call = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(call)
        given = inspect.signature(target).parameters
    except (NameError, TypeError, ValueError):  # names that only type checkers see, or code in C
        return {}
    return {
        name: hint | None if parameter.default is None else hint
        for name, parameter in given.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for hint in [hints.get(name, Any)]
    }


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may be of the type; true where that cannot be told."""
    if isinstance(value, Mapping):
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(hint):
        return any(_fits(value, one) for one in _plain(inner))
    if origin is typing.Literal:
        if isinstance(value, bool) and {"on", "off"} & set(inner):
            return True  # how yaml reads these words
        return type(value) in {type(one) for one in inner}  # which one is the target's affair
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _WORDS:
        return isinstance(value, hint)
    if _is_list(hint):
        if not isinstance(value, list | tuple):
            return False
        of = [one for one in inner if one is not Ellipsis]
        return not of or all(any(_fits(item, one) for one in of) for item in value)
    return True


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _plain(kinds: Sequence[Any]) -> Sequence[Any]:
    """Of several types those of plain values, where there are any: no file has a tensor."""
    plain = [one for one in kinds if one in _WORDS or not inspect.isclass(one) or _is_list(one)]
    return plain if any(one is not type(None) for one in plain) else kinds


def _is_list(hint: Any) -> bool:
    return (typing.get_origin(hint) or hint) in (list, tuple, Sequence)


def _expected(hint: Any) -> str:
    inner = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(dict.fromkeys(_expected(one) for one in _plain(inner)))
    if _is_list(hint):
        of = " or ".join(dict.fromkeys(_expected(one) for one in inner if one is not Ellipsis))
        return f"a list ([...], each {of})" if of else "a list ([...])"
    if hint in _WORDS:
        return _WORDS[hint]
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, inner))
    return getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    """The value as a yaml has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _place(node: Node, path: str, arguments: Mapping[str, Any], key: str) -> str:
    """The key as it can be set: what a group is told of another one is that one's."""
    last = path.rsplit(".", 1)[-1]
    same = node.get(last)
    if isinstance(same, Mapping) and all(same.get(k) == v for k, v in arguments.items()):
        return f"{last}.{key}"
    if node.get(key) == arguments[key] and key in node:
        return key
    return f"{path}.{key}"
