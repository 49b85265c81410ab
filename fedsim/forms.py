"""What an upload must look like: records, tensors, types, shapes and ranges, checked in one go.

A method says what its server expects as a :class:`Form`::

    Form(records={"statistics": {
        "classes": Field(int, ("k",), low=0, high=9),
        "sums": Field(float, ("k", "D")),
        "counts": Field(int, ("k",), low=0),
    }})

A number in a shape is a size that must be met. A small letter stands for a size that must be the
same wherever it occurs in the upload. A capital letter stands for a size that must be the same in
all uploads of a round, and that the server cannot know beforehand; ``"..."`` at the end stands for
any further sizes, likewise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]
Records = Mapping[str, Params]
Sizes = dict[str, int | tuple[int, ...]]
REST = "..."
_FEW_VALUES = 64  # up to here Python finds the largest faster than torch does


class Fault(NamedTuple):
    """Why an upload is refused.

    Attributes:
        kind: One word for counting, ``docs/reliability.md`` lists them.
        reason: What was expected and what came.
    """

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a record.

    Attributes:
        dtype: Its type; ``int`` and ``float`` stand for any integer or floating type.
        shape: Its sizes, see the module.
        low: Smallest allowed value, or None.
        high: Largest allowed value, or None.
    """

    dtype: torch.dtype | type[int] | type[float]
    shape: tuple[int | str, ...] = ()
    low: float | None = None
    high: float | None = None


Fields = Mapping[str, Field]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way an upload may look.

    Attributes:
        records: The fields of every record.
        optional: Records that may be left out.
    """

    records: Mapping[str, Fields]
    optional: frozenset[str] = frozenset()


def fields_of(params: Params) -> dict[str, Field]:
    """The fields of tensors like these."""
    return {name: Field(t.dtype, tuple(t.shape)) for name, t in params.items()}


def class_sums(width: int | str, num_classes: int | None) -> dict[str, Field]:
    """The fields of sums of embeddings by class.

    Args:
        width: Size of an embedding, or a letter for it.
        num_classes: Classes there are, or None if that is unknown.
    """
    last = None if num_classes is None else num_classes - 1
    return {
        "classes": Field(torch.int64, ("k",), low=0, high=last),
        "sums": Field(float, ("k", width)),
        "counts": Field(int, ("k",), low=0),
    }


def check(records: Records, forms: Sequence[Form]) -> tuple[Fault | None, Sizes]:
    """Why the records fit none of the forms, or None; and the round-wide sizes of the one they fit.

    >>> check({"a": {"x": torch.zeros(2)}}, [Form(records={"a": {"x": Field(float, (3,))}})])[0]
    Fault(kind='shape', reason="record 'a', 'x': expected shape (3,), got (2,)")

    Args:
        records: What a client sent.
        forms: Ways an upload may look, at least one. Told is what is wrong by the first of those
            that has the most record names in common with the records.
    """
    likely = max(forms, key=lambda form: len(form.records.keys() & records.keys()))
    for form in sorted(forms, key=lambda form: form is not likely):
        sizes: Sizes = {}
        fault = _mismatch(records, form, sizes)
        if fault is None:
            return None, {n: size for n, size in sizes.items() if n.isupper() or n == REST}
        if form is likely:
            told = fault
    return told, {}


def _mismatch(records: Records, form: Form, sizes: Sizes) -> Fault | None:
    if records.keys() != form.records.keys():
        if unknown := sorted(records.keys() - form.records.keys()):
            expected = ", ".join(form.records) or "none"
            return Fault("records", f"unknown record {_few(unknown)}; expected {expected}")
        if missing := sorted(form.records.keys() - form.optional - records.keys()):
            return Fault("records", f"record {_few(missing)} is missing")
    for name, params in records.items():
        if fault := _record_fault(name, params, form.records[name], sizes):
            return fault
    return None


def _record_fault(record: str, params: Params, fields: Fields, sizes: Sizes) -> Fault | None:
    if params.keys() != fields.keys():
        wrong = sorted(params.keys() ^ fields.keys())
        what = f"record {record!r}: expected {len(fields)} tensors, got {len(params)}"
        return Fault("names", f"{what}; only on one side: {_few(wrong)}")
    for name, tensor in params.items():
        field = fields[name]
        if not _has_type(tensor, field):
            want = getattr(field.dtype, "__name__", str(field.dtype).removeprefix("torch."))
            where = _where(record, name)
            return Fault("dtype", f"{where}: expected {want}, got {_type(tensor)}")
        if tensor.shape != field.shape and not _fits(tensor, field.shape, sizes):
            want = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in field.shape)
            where = _where(record, name)
            return Fault("shape", f"{where}: expected shape {want}, got {tuple(tensor.shape)}")
        if fault := _range_fault(tensor, field):
            return Fault("range", f"{_where(record, name)}: {fault}")
    return None


def _where(record: str, name: str) -> str:
    return f"record {record!r}, {name!r}"


def _has_type(tensor: Tensor, field: Field) -> bool:
    if field.dtype is float:
        return tensor.is_floating_point()
    if field.dtype is int:
        return not tensor.is_floating_point() and tensor.dtype != torch.bool
    return tensor.dtype == field.dtype


def _fits(tensor: Tensor, shape: tuple[int | str, ...], sizes: Sizes) -> bool:
    """Whether the shape is as described; sizes that letters stand for are filled in."""
    sides = tuple(tensor.shape)
    if shape and shape[-1] == REST:
        shape = shape[:-1]
        rest = sides[len(shape) :]
        if sizes.setdefault(REST, rest) != rest:
            return False
        sides = sides[: len(shape)]
    if len(sides) != len(shape):
        return False
    for size, wanted in zip(sides, shape, strict=True):
        known = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != known:
            return False
    return True


def _range_fault(tensor: Tensor, field: Field) -> str | None:
    count = tensor.numel()
    if count == 0 or (field.low is None and field.high is None):
        return None
    if count <= _FEW_VALUES:
        values = tensor.flatten().tolist()
        low, high = min(values), max(values)
    else:
        low, high = (value.item() for value in tensor.aminmax())
    if field.low is not None and low < field.low:
        return f"expected values of at least {field.low:g}, got {low:g}"
    if field.high is not None and high > field.high:
        return f"expected values of at most {field.high:g}, got {high:g}"
    return None


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
