"""Which Flower node is which client, and grids that show their nodes in client order."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

FIRST_NODE = SUPERLINK_NODE_ID + 1  # node ids below belong to Flower
_FRAME = "<class '{}'>:<'{}'>"  # that Flower puts around what an exception said
_FRAMED = re.compile(r"<class '([\w.]+)'>:<'(.*)'>", re.DOTALL)
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0  # between looks for replies


class ClientError(RuntimeError):
    """A client failed, and the run is set to stop then."""


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


class NodeRoster:
    """Node ids as Flower drew them.

    Args:
        nodes: The node of every client, ``0..num_clients-1``.
    """

    def __init__(self, nodes: Mapping[int, int]) -> None:
        self.num_clients = len(nodes)
        self._node_of = dict(nodes)
        self._client_of = {node: client for client, node in nodes.items()}

    def node(self, client_id: int) -> int:
        """See :class:`Roster`."""
        return self._node_of[client_id]

    def client(self, node_id: int) -> int:
        """See :class:`Roster`."""
        return self._client_of[node_id]


class OrderedGrid(Grid):
    """Another grid with its nodes in client order, where every message gets an answer in time.

    Flower's strategies sample by position among the node ids. Flower's own engines draw these ids
    at random, so without an order the same seed would pick other clients every time.

    A message that could not be delivered, or was not answered in time, is answered by an error that
    says so: no client is lost silently. Replies are looked for more often than Flower does (every
    three seconds), which short rounds would spend waiting.

    Args:
        grid: The grid that does the work.
        roster: Which node is which client.
        timeout: Seconds that so many clients of a round may take, or None for no limit.
        raise_errors: Whether an exception in a client stops the run.
        check: Called while replies are awaited; raises if none can come any more.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        *,
        timeout: Callable[[int], float] | None = None,
        raise_errors: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = grid
        self._roster = roster
        self._nodes = tuple(roster.node(client) for client in range(roster.num_clients))
        self._timeout = timeout
        self._raise_errors = raise_errors
        self._check = check

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
        """One reply to every message, in client order.

        Raises:
            ClientError: If a client raised an exception and ``raise_errors`` is set.
        """
        asked = list(messages)
        limits = [] if timeout is None else [timeout]
        if self._timeout is not None:
            limits.append(self._timeout(len(asked)))
        replies = exchange(self._grid, asked, timeout=min(limits, default=None), check=self._check)
        replies.sort(key=lambda reply: self._roster.client(reply.metadata.src_node_id))
        for reply in replies:
            if reply.has_error():
                reason = plain(reply.error.reason)
                if self._raise_errors and _is_raised(reply.error):
                    client = self._roster.client(reply.metadata.src_node_id)
                    kind = reply.metadata.message_type
                    raise ClientError(f"client {client} failed in {kind!r}: {reason}")
                reply.error = Error(reply.error.code, reason)
        return replies


def exchange(
    grid: Grid,
    messages: list[Message],
    *,
    timeout: float | None,
    check: Callable[[], None] = lambda: None,
) -> list[Message]:
    """One reply to every message, as they come; an error where none came.

    Args:
        grid: Where the nodes are.
        messages: To send.
        timeout: Seconds to wait, or None.
        check: Called while replies are awaited; raises if none can come any more.
    """
    sent = set(grid.push_messages(messages)) if messages else set()
    waiting = {m.metadata.message_id: m for m in messages if m.metadata.message_id in sent}
    replies = [
        _error(message, ErrorCode.NODE_UNAVAILABLE, "the node is not connected")
        for message in messages
        if message.metadata.message_id not in sent
    ]
    start = time.monotonic()
    while waiting:
        for reply in grid.pull_messages(set(waiting)):
            asked = waiting.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                replies.append(_attributed(reply, asked))
        elapsed = time.monotonic() - start
        if not waiting or (timeout is not None and elapsed >= timeout):
            break
        check()
        pause = min(max(elapsed / 10, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        time.sleep(pause if timeout is None else min(pause, timeout - elapsed))
    late = f"no answer within {timeout:g} s" if timeout is not None else "no answer"
    return replies + [_error(m, ErrorCode.NODE_UNAVAILABLE, late) for m in waiting.values()]


def _attributed(reply: Message, asked: Message) -> Message:
    """The reply; errors of Flower's own in the name of the node that was asked."""
    if not reply.has_error():
        return reply
    return _error(asked, reply.error.code, reply.error.reason or "unknown")


def _error(asked: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=asked)


def framed(error: Exception, more: str = "") -> str:
    """What Flower's runtime makes of an exception, for replies that are written in its stead."""
    return _FRAME.format(type(error).__name__, f"{error}{more}")


def plain(reason: str | None) -> str:
    """What a client's exception said, without the frame."""
    found = _FRAMED.fullmatch(reason or "unknown")
    if found is None:
        return reason or "unknown"
    return f"{found.group(1).rsplit('.', 1)[-1]}: {found.group(2)}"


def _is_raised(error: Error) -> bool:
    """Whether an exception is behind it, and not the client's own decision to send an error."""
    if error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION:
        return True
    raised = error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return raised and _FRAMED.fullmatch(error.reason or "") is not None


def ask_roster(grid: Grid, num_clients: int, *, wait: float) -> NodeRoster:
    """Ask every node once which client it is.

    Args:
        grid: A grid whose nodes answer queries.
        num_clients: How many nodes to wait for.
        wait: Seconds for the nodes to connect, and again to answer.

    Raises:
        RuntimeError: If the nodes do not come, one of the clients is nobody, or two nodes claim to
            be the same client.
    """
    nodes = _wait_for_nodes(grid, num_clients, wait)
    node_of: dict[int, int] = {}
    failed = []
    asked = [Message(RecordDict(), node, "query") for node in nodes]
    for reply in exchange(grid, asked, timeout=wait):
        node = reply.metadata.src_node_id
        if reply.has_error():
            failed.append(f"node {node}: {plain(reply.error.reason)}")
            continue
        client = int(reply.content["metrics"]["client"])  # type: ignore[arg-type]
        if client in node_of:
            one, other = sorted((node_of[client], node))
            raise RuntimeError(
                f"two nodes, {one} and {other}, have partition-id={client}; give every"
                " node its own in --node-config"
            )
        node_of[client] = node
    for client in range(num_clients):
        if client not in node_of:
            raise RuntimeError(
                f"expected nodes with partition-id 0..{num_clients - 1} (num_clients), none is"
                f" {client}; {'; '.join(failed) or f'there are {sorted(node_of)}'}"
            )
    return NodeRoster({client: node_of[client] for client in range(num_clients)})


def _wait_for_nodes(grid: Grid, count: int, wait: float) -> list[int]:
    deadline = time.monotonic() + wait
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected {count} nodes (num_clients), {len(nodes)} connected within {wait:g} s"
            )
        time.sleep(0.1)
    return nodes
