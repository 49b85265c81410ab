"""Uploads of a block of clients as one stack, so that what is true of all is found out once."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Params = dict[str, Tensor]
T = TypeVar("T")


class Bundle:
    """Weights of clients that were trained at once.

    Args:
        stack: Tensors with one row per client, ``[k, ...]``.
        shared: Tensors that are the same for all of them.
        names: The order of the tensors in an upload.
    """

    def __init__(self, stack: Params, shared: Params, names: list[str]) -> None:
        self.stack, self.shared = stack, shared
        self._squares: list[float] | None = None
        self._found: dict[str, tuple[object, object]] = {}
        rows = {name: tensor.unbind(0) for name, tensor in stack.items()}
        self.rows = [
            Row({n: rows[n][place] if n in rows else shared[n] for n in names}, self, place)
            for place in range(len(next(iter(stack.values()))))
        ]

    def squares(self) -> list[float]:
        """Sum of the squares of every client's floating-point values."""
        if self._squares is None:
            total = torch.zeros(len(self.rows))
            for tensor in self.stack.values():
                if tensor.is_floating_point():
                    flat = tensor.reshape(len(self.rows), -1)
                    total += torch.linalg.vecdot(flat, flat).float()
            constant = sum(
                float(t.flatten().dot(t.flatten()))
                for t in self.shared.values()
                if t.is_floating_point()
            )
            self._squares = (total + constant).tolist()
        return self._squares

    def once(self, what: str, about: object, find: Callable[[], T]) -> T:
        """What holds for every row, found out at the first.

        Args:
            what: A name for it.
            about: What it depends on besides the rows.
            find: Finds it out.
        """
        known = self._found.get(what)
        if known is None or known[0] is not about:
            known = self._found[what] = about, find()
        return known[1]  # type: ignore[return-value]


class Row(dict[str, Tensor]):
    """One client's tensors out of a bundle.

    Args:
        params: The tensors.
        bundle: Which they belong to.
        place: The client's row.
    """

    __slots__ = ("bundle", "place")

    def __init__(self, params: Params, bundle: Bundle, place: int) -> None:
        super().__init__(params)
        self.bundle, self.place = bundle, place


def row_of(records: Mapping[str, Params]) -> Row | None:
    """The row that an upload consists of, if that is all that it has."""
    if len(records) == 1:
        params = records.get("arrays")
        if type(params) is Row:
            return params
    return None
