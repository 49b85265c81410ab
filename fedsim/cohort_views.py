"""What a block's loss sees of the clients' downloads and states: one client's, standing for all.

Tensors are stacked, one row per client, unless all clients share the same one. Anything that is not
the same for all clients and no tensor (a client's number, unequal counters, a memory of unequal
length) raises :class:`UnstackableError` when it is read, so that a block either computes what the
per-client loop does or is trained by that loop.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.state import ClientState
from fedsim.wire import Config, Download


class UnstackableError(Exception):
    """Why the clients of a block cannot be trained at once; they are then trained one by one."""


class Stack:
    """Named groups of tensors of several clients.

    Args:
        groups: Every client's, with the same names.
    """

    def __init__(self, groups: Sequence[Mapping[str, Params]]) -> None:
        self._shared: dict[str, Params] = {}
        self._names: list[tuple[str, str]] = []
        self._unequal: set[str] = set()
        self.tensors: list[Tensor] = []
        alike = all(group is groups[0] for group in groups)
        self._shared.update(groups[0] if alike else {})
        for name in () if alike else groups[0]:
            self._add(name, [group[name] for group in groups])

    def _add(self, name: str, rows: Sequence[Params]) -> None:
        first = rows[0]
        if all(is_same(row, first) for row in rows[1:]):
            self._shared[name] = first
            return
        if any(_shapes(row) != _shapes(first) for row in rows[1:]):
            self._unequal.add(name)
            return
        for key in first:
            self._names.append((name, key))
            self.tensors.append(torch.stack([row[key] for row in rows]))

    def keep(self, rows: Tensor) -> None:
        """Go on with these clients only."""
        self.tensors = [tensor[rows] for tensor in self.tensors]

    def records(self, tensors: Sequence[Tensor]) -> Records:
        """The groups, with the given tensors in place of the stacked ones."""
        records: Records = dict(self._shared)
        records.update((name, Unequal(name)) for name in self._unequal)
        for (name, key), tensor in zip(self._names, tensors, strict=True):
            records.setdefault(name, {})[key] = tensor
        return records


class BlockDownload(Download):
    """A download that stands for those of all clients of a block."""

    __slots__ = ()

    def __init__(self, tick: Tick, records: Records, config: Config) -> None:
        super().__init__(client_id=None, tick=tick, records=records, config=config)

    def __getattribute__(self, name: str) -> object:
        if name == "client_id":
            raise UnstackableError("the loss depends on the client's number")
        return super().__getattribute__(name)


class BlockState(ClientState):
    """A state that stands for those of all clients of a block; read only.

    Args:
        groups: The tensors.
        states: The states themselves, for what must be the same in all.
    """

    def __init__(self, groups: Records, states: Sequence[ClientState]) -> None:
        super().__init__()
        self._groups = groups
        self._states = states

    def __getitem__(self, name: str) -> Params:
        return self._groups[name]

    def __setitem__(self, name: str, params: Params) -> None:
        raise UnstackableError(f"the loss writes {name!r} to the client's state")

    def __delitem__(self, name: str) -> None:
        raise UnstackableError(f"the loss deletes {name!r} from the client's state")

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def count(self, name: str, default: int = 0) -> int:
        """A named integer, if all clients have the same."""
        values = {state.count(name, default) for state in self._states}
        if len(values) > 1:
            raise UnstackableError(f"the loss reads counter {name!r}, which differs by client")
        return values.pop()

    def set_count(self, name: str, value: int) -> None:
        """See :class:`fedsim.state.ClientState`."""
        raise UnstackableError(f"the loss sets counter {name!r} to {value}")


class Unequal(dict[str, Tensor]):
    """Tensors that have other names or shapes in other clients."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _refuse(self, *_: object) -> NoReturn:
        raise UnstackableError(f"what it reads of {self._name!r} differs by client")

    __getitem__ = __contains__ = __iter__ = __len__ = _refuse
    get = items = keys = values = _refuse


def is_same(a: Params, b: Params) -> bool:
    """Whether two groups are the very same tensors."""
    return a is b or (a.keys() == b.keys() and all(a[name] is b[name] for name in a))


def _shapes(params: Params) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in params.items()}
