"""Contexts of Flower's nodes whose states lie in one store, so that a run can go on from there."""

from collections.abc import Callable, Mapping

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedsim.roster import OrderedGrid, Roster
from fedsim.state import MemoryStore, Store


class Contexts:
    """What Flower's simulation runtime keeps for every node; nothing per registered node here.

    The runtime asks with a node's id and a run's, from several threads.

    Args:
        client_of: The client that every node is.

    Attributes:
        store: Keeps the states, by client.
    """

    def __init__(self, client_of: Mapping[int, int]) -> None:
        self.store: Store = MemoryStore()
        self._client_of = client_of

    def __getitem__(self, node_id: int) -> "NodeContext":
        return NodeContext(self, node_id, self._client_of[node_id], len(self._client_of))


class NodeContext:
    """One node's context; Flower's ``DeprecatedRunInfoStore`` for a single run.

    Args:
        contexts: Those of all nodes.
        node_id: Flower's number of the node.
        client_id: The client that it is.
        num_clients: Registered clients.
    """

    def __init__(self, contexts: Contexts, node_id: int, client_id: int, num_clients: int) -> None:
        self._contexts = contexts
        self._node_id, self._client_id, self._num_clients = node_id, client_id, num_clients

    def retrieve_context(self, run_id: int) -> Context:
        """What the node is and remembers."""
        state = self._contexts.store.get(self._client_id)
        return Context(
            run_id=run_id,
            node_id=self._node_id,
            node_config={"partition-id": self._client_id, "num-partitions": self._num_clients},
            state=RecordDict() if state is None else state,
            run_config={},
        )

    def update_context(self, run_id: int, context: Context) -> None:
        """Keep what the node remembers now."""
        del run_id
        if len(context.state) > 0:
            self._contexts.store.put(self._client_id, context.state)


class KeepingGrid(OrderedGrid):
    """A grid whose clients' states can be read and replaced between rounds.

    Args:
        contexts: Of its nodes.
        grid: See :class:`fedsim.roster.OrderedGrid`, as for the rest.
        roster: Which node is which client.
        timeout: Seconds that so many clients of a round may take, or None.
        raise_errors: Whether an exception in a client stops the run.
        check: Called while replies are awaited.
    """

    def __init__(
        self,
        contexts: Contexts,
        grid: Grid,
        roster: Roster,
        *,
        timeout: Callable[[int], float] | None,
        raise_errors: bool,
        check: Callable[[], None],
    ) -> None:
        super().__init__(grid, roster, timeout=timeout, raise_errors=raise_errors, check=check)
        self._contexts = contexts

    @property
    def store(self) -> Store:
        """Where they are kept."""
        return self._contexts.store

    @store.setter
    def store(self, store: Store) -> None:
        self._contexts.store = store
