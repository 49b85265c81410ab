"""Which Flower node is which client, and grids that show their nodes in client order."""

import time
from collections.abc import Iterable
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run

FIRST_NODE = SUPERLINK_NODE_ID + 1  # node ids below belong to Flower
_WAIT_S = 300.0  # for nodes to connect and answer


class Roster(Protocol):
    """Which Flower node is which client.

    Attributes:
        num_clients: Registered clients.
    """

    num_clients: int

    def node(self, client_id: int) -> int:
        """Flower's address of a client."""
        ...

    def client(self, node_id: int) -> int:
        """The client behind an address."""
        ...


class LocalRoster:
    """Node ids of :class:`LocalGrid`: the client's number, shifted past Flower's own ids."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def node(self, client_id: int) -> int:
        """See :class:`Roster`."""
        return client_id + FIRST_NODE

    def client(self, node_id: int) -> int:
        """See :class:`Roster`."""
        return node_id - FIRST_NODE


class OrderedGrid(Grid):
    """Another grid with its nodes in client order.

    Flower's strategies sample by position among the node ids. Flower's own engines draw these ids
    at random, so without an order the same seed would pick other clients every time.

    Args:
        grid: The grid that does the work.
        roster: Which node is which client.
    """

    def __init__(self, grid: Grid, roster: Roster) -> None:
        self._grid = grid
        self._nodes = tuple(roster.node(client) for client in range(roster.num_clients))

    def set_run(self, run: Run) -> None:
        """See Flower's ``Grid``."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Flower's ``Grid``."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's ``Grid``."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All node ids, by client."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's ``Grid``."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's ``Grid``."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See Flower's ``Grid``."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class QueriedRoster:
    """Which Flower node is which client, found by asking every node once.

    Args:
        grid: A grid whose nodes answer queries.
        num_clients: How many nodes to wait for.

    Raises:
        RuntimeError: If the nodes do not come, or two of them claim to be the same client.
    """

    def __init__(self, grid: Grid, num_clients: int) -> None:
        self.num_clients = num_clients
        nodes = _wait_for_nodes(grid, num_clients)
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        self._node_of: dict[int, int] = {}
        for reply in grid.send_and_receive(asked, timeout=_WAIT_S):
            client = int(reply.content["metrics"]["client"])  # type: ignore[arg-type]
            self._node_of[client] = reply.metadata.src_node_id
        missing = [c for c in range(num_clients) if c not in self._node_of]
        if missing:
            raise RuntimeError(
                f"expected nodes with partition-id 0..{num_clients - 1}, none is {missing[0]}"
            )
        self._client_of = {node: client for client, node in self._node_of.items()}

    def node(self, client_id: int) -> int:
        """See :class:`fedsim.grid.Roster`."""
        return self._node_of[client_id]

    def client(self, node_id: int) -> int:
        """See :class:`fedsim.grid.Roster`."""
        return self._client_of[node_id]


def _wait_for_nodes(grid: Grid, count: int) -> list[int]:
    deadline = time.monotonic() + _WAIT_S
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected {count} nodes (num_clients), {len(nodes)} connected")
        time.sleep(0.1)
    return nodes
