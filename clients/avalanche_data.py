"""Avalanche's data sets for :mod:`fedsim.codec`: indices into the client's stream."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clients.avalanche_state import class_named, qualified
from fedsim.codec import Decoder, Encoder, Form, Node
from fedsim.scenario import Scenario

Index = NDArray[np.int64]


class ClientStream:
    """The training stream of one client, and which source each of its examples comes from.

    Args:
        scenario: The data.
        client_id: In ``[0, num_clients)``.
    """

    def __init__(self, scenario: Scenario, client_id: int) -> None:
        self.benchmark = scenario.streams(client_id)
        self.experiences = list(self.benchmark.train_stream)
        self.num_classes = scenario.num_classes
        self._positions: dict[int, int] = {}
        self._sources: list[Any] = []
        for position, experience in enumerate(self.experiences):
            (source,) = experience.dataset._flat_data._datasets or [None]
            self._positions[id(source)] = position
            self._sources.append(source)

    def position(self, source: Any) -> int | None:
        """Which experience a source of examples is, or None if it is not of this stream."""
        return self._positions.get(id(source))

    def source(self, position: int) -> Any:
        """The examples of an experience as Avalanche holds them."""
        return self._sources[position]

    def announce(self, visited: list[int]) -> None:
        """Tell the benchmark which classes came when, counting only visited experiences.

        Methods that read ``benchmark.n_classes_per_exp[clock.train_exp_counter]`` (iCaRL) take it
        for granted that every experience is trained on; a client may miss some.
        """
        new: list[list[int]] = []
        for position in visited:
            known = {c for classes in new for c in classes}
            classes = self.experiences[position].classes_in_this_experience
            new.append([int(c) for c in classes if c not in known])
        known = {c for classes in new for c in classes}
        new.append([c for c in range(self.num_classes) if c not in known])
        self.benchmark.n_classes_per_exp = [len(classes) for classes in new]
        self.benchmark.classes_order = [c for classes in new for c in classes]


class StoredExamples(Dataset[tuple[Any, ...]]):
    """Examples that are not of the stream, such as stored features or exemplars, by value.

    Args:
        columns: One tensor per entry of an example, each ``[n, ...]``.
        numbers: Which columns hold Python numbers instead of tensors.
    """

    def __init__(self, columns: list[Tensor], numbers: list[bool]) -> None:
        self._columns = columns
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = zip(self._columns, self._numbers, strict=True)
        return tuple(c[index].item() if number else c[index] for c, number in row)


class DatasetForm(Form):
    """Avalanche data sets: stream examples as ``(position, index)``, others and labels by value.

    Args:
        stream: The client's stream; None for a strategy that has not met a client yet.
    """

    tag = "dataset"

    def __init__(self, stream: ClientStream | None) -> None:
        self._stream = stream

    def accepts(self, value: Any, encoder: Encoder) -> bool:
        """See :class:`Form`."""
        from avalanche.benchmarks.utils import AvalancheDataset

        del encoder
        return isinstance(value, AvalancheDataset)

    def encode(self, value: Any, encoder: Encoder, where: str) -> list[Node]:
        """See :class:`Form`."""
        sources, which, rows = _examples(value._flat_data, where)
        parts = []
        for number, source in enumerate(sources):
            position = None if self._stream is None else self._stream.position(source)
            if position is not None:
                parts.append(["stream", position])
                continue
            used, new = np.unique(rows[which == number], return_inverse=True)
            rows[which == number] = new
            parts.append(["stored", _columns([source[int(i)] for i in used], encoder, where)])
        attributes = [
            [a.name, a.use_in_getitem, *_labels(a, encoder, f"{where}.{a.name}")]
            for a in value._data_attributes.values()
        ]
        collate = encoder.value(value.collate_fn, f"{where}.collate_fn")
        places = encoder.tensor(torch.from_numpy(np.stack([which, rows])))
        return [qualified(type(value)), collate, parts, places, attributes]

    def decode(self, parts: list[Node], decoder: Decoder, number: int) -> Any:
        """See :class:`Form`."""
        from avalanche.benchmarks.utils import AvalancheDataset
        from avalanche.benchmarks.utils.data import _FlatDataWithTransform
        from avalanche.benchmarks.utils.data_attribute import DataAttribute

        del number
        path, collate, sources, places, attributes = parts
        kind = class_named(path, decoder.packages)
        if not issubclass(kind, AvalancheDataset):
            raise ValueError(f"the stored state names {path}, which is no data set")
        which, rows = decoder.tensor(places).numpy()
        found = [self._source(part, decoder) for part in sources]
        begins = np.cumsum([0, *(len(source) for source in found)])
        flat = _FlatDataWithTransform(found, indices=(begins[which] + rows).tolist())
        labels = [
            DataAttribute(_values(form, content, decoder), name, use_in_getitem=shown)
            for name, shown, form, content in attributes
        ]
        return kind([flat], data_attributes=labels or None, collate_fn=decoder.value(collate))

    def _source(self, part: list[Any], decoder: Decoder) -> Any:
        kind, content = part
        if kind == "stream":
            if self._stream is None:
                raise ValueError("examples of a stream cannot be read without the stream")
            return self._stream.source(content)
        names, numbers = content
        return StoredExamples([decoder.tensor(name) for name in names], numbers)


def _examples(flat: Any, where: str) -> tuple[list[Any], Index, Index]:
    """Sources of a data set, and for every example its source and its row there, in order."""
    groups = [getattr(flat, f"_{kind}transform_groups", None) for kind in ("", "frozen_")]
    if any(g is not None and any(f for f in g.transform_groups.values()) for g in groups):
        raise TypeError(f"{where}: a data set with transformations cannot be kept between rounds")
    indices = np.arange(len(flat))
    if flat._indices is not None:
        indices = np.array([int(i) for i in flat._indices], np.int64)
    ends = np.array(flat._cumulative_sizes, np.int64)
    part = np.searchsorted(ends, indices, side="right")
    inside = indices - np.concatenate([[0], ends])[part]
    sources: list[Any] = []
    which, rows = np.empty_like(indices), np.empty_like(indices)
    for number, below in enumerate(flat._datasets):
        chosen = part == number
        if not chosen.any():
            continue
        if not hasattr(below, "_flat_data") and not hasattr(below, "_cumulative_sizes"):
            which[chosen], rows[chosen] = len(sources), inside[chosen]
            sources.append(below)
            continue
        deeper, w, r = _examples(getattr(below, "_flat_data", below), where)
        which[chosen], rows[chosen] = len(sources) + w[inside[chosen]], r[inside[chosen]]
        sources.extend(deeper)
    return sources, which, rows


def _columns(rows: list[Any], encoder: Encoder, where: str) -> Node:
    """Examples column by column: names of the tensors, and which columns hold numbers."""
    names, numbers = [], []
    for column in zip(*rows, strict=True):
        if all(isinstance(x, Tensor) for x in column):
            names.append(encoder.tensor(torch.stack(list(column))))
            numbers.append(False)
        elif all(type(x) in (bool, int, float) for x in column):
            kinds = {type(x) for x in column}
            if len(kinds) > 1:
                raise TypeError(f"{where}: a column of mixed types {kinds} cannot be kept")
            dtype = torch.float64 if kinds == {float} else None
            names.append(encoder.tensor(torch.tensor(column, dtype=dtype)))
            numbers.append(True)
        else:
            kinds = {type(x) for x in column}
            raise TypeError(f"{where}: examples made of {kinds} cannot be kept between rounds")
    return [names, numbers]


def _labels(attribute: Any, encoder: Encoder, where: str) -> list[Node]:
    """One value per example; a constant one is kept as such, since only then it can be joined."""
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    if isinstance(attribute.data, ConstantSequence):
        return ["constant", [encoder.value(attribute.data._constant_value, where), len(attribute)]]
    return ["column", _columns([(x,) for x in attribute], encoder, where)]


def _values(kind: str, content: Node, decoder: Decoder) -> Any:
    """What :func:`_labels` described."""
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    if kind == "constant":
        value, size = content
        return ConstantSequence(decoder.value(value), size)
    names, numbers = content
    if not names:
        return []
    tensor = decoder.tensor(names[0])
    return tensor.tolist() if numbers[0] else list(tensor.unbind())
