"""How the docstrings' marks become Markdown's, for the reference."""

import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:mod|func|class|meth|exc):`([^`]+)`")
VALUE = re.compile(r":(?:attr|data):(`[^`]+`)")  # has no heading to link to
SESSION = re.compile(r"^>>> .*(?:\n(?!\s*$).+)*", re.MULTILINE)
OURS = ("fedsim", "strategies", "clients", "scenarios")


class Marks(griffe.Extension):
    """Links of roles such as ``:func:`name```, and interpreter sessions as blocks."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of a package, once all its names are known."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = mended(obj.docstring.value, obj)
        for member in obj.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)


def mended(text: str, obj: griffe.Object) -> str:
    """The docstring in Markdown."""
    text = SESSION.sub(lambda found: f"```pycon\n{found[0]}\n```", inspect.cleandoc(text))
    text = VALUE.sub(r"\1", text)
    return ROLE.sub(lambda found: _link(found[1], obj), text)


def _link(name: str, obj: griffe.Object) -> str:
    """A link to what the name means where it is said; plain code where it is not ours."""
    path = _resolved(name, obj)
    return f"`{name}`" if path is None else f"[`{name}`][{path}]"


def _resolved(name: str, obj: griffe.Object) -> str | None:
    """The full path of what a name means where it is said; None if it is not ours."""
    path = name
    scope: griffe.Object | None = obj
    while scope is not None:
        try:
            found = scope[name]
            path = str(found.target_path if found.is_alias else found.path)
            break
        except (KeyError, griffe.AliasResolutionError):
            scope = scope.parent
    return path if path.split(".")[0] in OURS else None
