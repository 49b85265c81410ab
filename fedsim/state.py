"""What a client remembers between rounds, and where it is kept.

A client's memory lives in its Flower ``Context.state`` and nowhere else, so any engine carries it.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedsim.arrays import Params, fill, to_params, to_record

_COUNTERS = "counters"


class ClientState(MutableMapping[str, Params]):
    """A client's memory: named groups of tensors and named integers.

    Every write goes through to the ``RecordDict`` below. Tensors that are read must not be
    written to; assign a new group instead.

    Args:
        records: The ``state`` of the client's Flower ``Context``.
    """

    def __init__(self, records: RecordDict | None = None) -> None:
        self._records = RecordDict() if records is None else records

    def __getitem__(self, name: str) -> Params:
        record = self._records[name]
        if not isinstance(record, ArrayRecord):
            raise KeyError(name)
        return to_params(record)

    def __setitem__(self, name: str, params: Params) -> None:
        self._records[name] = to_record(params)

    def __delitem__(self, name: str) -> None:
        del self._records[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, record in self._records.items() if isinstance(record, ArrayRecord))

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._records else 0

    def count(self, name: str, default: int = 0) -> int:
        """A named integer."""
        record = self._records.get(_COUNTERS)
        value = record.get(name, default) if isinstance(record, ConfigRecord) else default
        return int(value)  # type: ignore[arg-type]

    def set_count(self, name: str, value: int) -> None:
        """Remember an integer."""
        record = self._records.get(_COUNTERS)
        counters = record if isinstance(record, ConfigRecord) else ConfigRecord()
        counters[name] = value
        self._records[_COUNTERS] = counters


class Store(Protocol):
    """Client id to client state; only clients that have a state take room."""

    def get(self, client_id: int) -> RecordDict | None:
        """The client's state, or None."""
        ...

    def put(self, client_id: int, state: RecordDict) -> None:
        """Keep the client's state."""
        ...

    def ids(self) -> list[int]:
        """Clients that have a state, ascending."""
        ...


class MemoryStore:
    """Keeps every state in memory."""

    def __init__(self) -> None:
        self._states: dict[int, RecordDict] = {}

    def get(self, client_id: int) -> RecordDict | None:
        """See :class:`Store`."""
        return self._states.get(client_id)

    def put(self, client_id: int, state: RecordDict) -> None:
        """See :class:`Store`."""
        self._states[client_id] = state

    def ids(self) -> list[int]:
        """See :class:`Store`."""
        return sorted(self._states)


class RoundStore:
    """What clients remember at the end of the last round, apart from what a round has written.

    A round that is not finished can thus be dropped. What it writes is held in memory until then.

    Args:
        inner: Keeps the states of finished rounds.

    Attributes:
        changed: Clients whose state was written since this was last emptied.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._written: dict[int, RecordDict] = {}
        self.changed: set[int] = set()

    def get(self, client_id: int) -> RecordDict | None:
        """The client's state, which may be written to; see :class:`Store`."""
        if client_id in self._written:
            return self._written[client_id]
        state = self._inner.get(client_id)
        return None if state is None else copied(state)

    def put(self, client_id: int, state: RecordDict) -> None:
        """See :class:`Store`."""
        self._written[client_id] = state

    def ids(self) -> list[int]:
        """See :class:`Store`."""
        return sorted({*self._inner.ids(), *self._written})

    def commit(self) -> None:
        """A round is over: keep what it wrote."""
        written, self._written = self._written, {}  # a client that was too late may write even now
        for client_id, state in written.items():
            self._inner.put(client_id, state)
        self.changed |= written.keys()

    def kept(self, client_id: int) -> RecordDict:
        """The client's state at the end of the last round; read only.

        Raises:
            KeyError: If it has none.
        """
        state = self._inner.get(client_id)
        if state is None:
            raise KeyError(client_id)
        return state

    def kept_ids(self) -> list[int]:
        """Clients that had a state at the end of the last round, ascending."""
        return self._inner.ids()


def copied(state: RecordDict) -> RecordDict:
    """A state that can be written to without changing the original; arrays are shared."""
    records = {n: r if isinstance(r, ArrayRecord) else r.copy() for n, r in state.items()}
    return fill(RecordDict(), records)


class DiskStore:
    """Keeps the most recently used states in memory and the others as one file per client.

    Files hold Flower's protobuf form of the state: nothing is pickled. Those of an earlier run in
    the same folder are removed.

    Args:
        folder: Where the files go; created when needed.
        keep: States held in memory.
    """

    def __init__(self, *, folder: str | Path, keep: int = 1024) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder = Path(folder)
        self._keep = keep
        self._recent: OrderedDict[int, RecordDict] = OrderedDict()
        for pattern in ("*/*.state", "*/*.partial"):
            for path in self._folder.glob(pattern):
                path.unlink()

    def get(self, client_id: int) -> RecordDict | None:
        """See :class:`Store`."""
        if client_id in self._recent:
            self._recent.move_to_end(client_id)
            return self._recent[client_id]
        path = self._path(client_id)
        if not path.exists():
            return None
        state = recorddict_from_proto(ProtoRecordDict.FromString(path.read_bytes()))
        self.put(client_id, state)
        return state

    def put(self, client_id: int, state: RecordDict) -> None:
        """See :class:`Store`."""
        self._recent[client_id] = state
        self._recent.move_to_end(client_id)
        while len(self._recent) > self._keep:
            self._write(*self._recent.popitem(last=False))

    def ids(self) -> list[int]:
        """See :class:`Store`."""
        on_disk = (int(path.stem) for path in self._folder.glob("*/*.state"))
        return sorted({*self._recent, *on_disk})

    def _path(self, client_id: int) -> Path:
        return self._folder / f"{client_id % 256:02x}" / f"{client_id}.state"

    def _write(self, client_id: int, state: RecordDict) -> None:
        path = self._path(client_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".partial")
        beside.write_bytes(recorddict_to_proto(state).SerializeToString())
        os.replace(beside, path)
