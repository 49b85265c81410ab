"""The in-process engine: a Flower ``Grid`` that hands messages straight to the ``ClientApp``."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import ArrayRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.apps import BlockApp
from fedsim.arrays import LocalContent, decoded, fill
from fedsim.cohort_plan import CohortSize
from fedsim.roster import FIRST_NODE, LocalRoster
from fedsim.state import MemoryStore, Store

_RUN_ID = 1

UserConfig = dict[str, bool | float | int | str]


class LocalGrid(Grid):
    """Runs a Flower ``ClientApp`` in this process, without threads, sleeping or serialisation.

    Nothing is kept per registered client: a client's ``Context`` is made when a message arrives,
    and only a state that the client wrote is stored. Arrays of a payload shared by several
    messages are decoded once.

    Args:
        client_app: The app every client runs.
        num_clients: Registered clients; their ``partition-id`` is ``0..num_clients-1``.
        run_config: The ``run_config`` of every context.
        store: Where client states are kept; in memory by default.
        raise_errors: Whether an exception in a client stops the run, with the client named. Else it
            becomes an error reply, as on Flower's own engines.
        order: Reorders the messages of a batch before they are run, to check that results do not
            depend on it; replies come back in client order all the same.
        cohort: Clients of a fedsim app that are trained at once: a number, ``auto`` for what pays,
            ``off`` for one by one. Other apps are always run message by message.

    Raises:
        ValueError: If there is no client.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        *,
        run_config: UserConfig | None = None,
        store: Store | None = None,
        raise_errors: bool = False,
        order: Callable[[list[Message]], list[Message]] | None = None,
        cohort: CohortSize = "off",
    ) -> None:
        if num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {num_clients}")
        self.roster = LocalRoster(num_clients)
        self.store: Store = MemoryStore() if store is None else store
        self._app = client_app
        self._run_config = dict(run_config or {})
        self._raise_errors = raise_errors
        self._order = order
        self._cohort: CohortSize = cohort
        self._node_ids: tuple[int, ...] | None = None
        self._serial = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(_RUN_ID)
        # `Message` reads the sender from here; a process that runs a grid is the server
        TaskIdentity.run_id, TaskIdentity.node_id = _RUN_ID, SUPERLINK_NODE_ID
        TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """See Flower's ``Grid``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Flower's ``Grid``."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's ``Grid``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All node ids, ascending; the same tuple every time, so that copying it is cheap."""
        if self._node_ids is None:
            count = self.roster.num_clients
            self._node_ids = tuple(range(FIRST_NODE, FIRST_NODE + count))
        return self._node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages now and keep the replies until they are pulled."""
        ids = []
        for message in messages:
            (reply,) = self.send_and_receive([message])
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the pushed messages, each handed out once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies in client order; messages past the timeout are not run.

        Flower's strategies shuffle the nodes they address. Answering in client order makes sums
        come out the same whatever the order of the messages.
        """
        return list(self.stream(messages, timeout=timeout))

    def stream(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies one by one, made when they are asked for: one block's in memory at a time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        shared: dict[int, tuple[ArrayRecord, ArrayRecord]] = {}
        queue = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        blocks = self._blocks(queue)
        if self._order is not None:
            block_of = {id(m): number for number, block in enumerate(blocks) for m in block}
            numbers = dict.fromkeys(block_of[id(m)] for m in self._order(queue))
            done = {number: self._answer_all(blocks[number], shared) for number in numbers}
            yield from itertools.chain.from_iterable(done[n] for n in range(len(blocks)))
            return
        for block in blocks:
            if deadline is not None and time.monotonic() > deadline:
                return
            yield from self._answer_all(block, shared)

    def _blocks(self, queue: list[Message]) -> list[list[Message]]:
        """The messages in parts that are answered at once, as equal as they can be."""
        app, size = self._app, 1
        alike = {m.metadata.message_type for m in queue} == {MessageType.TRAIN}
        known = all(self._is_registered(m) for m in queue)
        if self._cohort != "off" and alike and known and isinstance(app, BlockApp):
            context = self._context(self.roster.client(queue[0].metadata.dst_node_id))
            size = app.block_size(queue[0], context, self._cohort)
        count = -(-len(queue) // size)
        cuts = [len(queue) * number // max(count, 1) for number in range(count + 1)]
        return [queue[start:end] for start, end in itertools.pairwise(cuts)]

    def _answer_all(
        self, block: list[Message], shared: dict[int, tuple[ArrayRecord, ArrayRecord]]
    ) -> list[Message]:
        """Answer a block at once or, if that is not possible, message by message."""
        app, reason = self._app, None
        if len(block) > 1 and isinstance(app, BlockApp):
            contexts = [self._context(self.roster.client(m.metadata.dst_node_id)) for m in block]
            for message in block:
                self._stamp(message)
            try:
                replies = app.train_block(block, contexts, self._cohort)
            except Exception as error:  # one by one shows whose error it is, or that there is none
                reason = f"a block failed with {type(error).__name__}: {error}"
            else:
                for context in contexts:
                    self._keep(context)
                return [self._finish(reply) for reply in replies]
        replies = [self._answer(message, shared) for message in block]
        if reason is not None and isinstance(app, BlockApp):
            app.decline(contexts[0], self._cohort, reason)
        return replies

    def _answer(
        self, message: Message, shared: dict[int, tuple[ArrayRecord, ArrayRecord]]
    ) -> Message:
        """Run one message and return its reply."""
        self._stamp(message)
        client_id = self.roster.client(message.metadata.dst_node_id)
        if not self._is_registered(message):
            error = Error(ErrorCode.NODE_UNAVAILABLE, f"no client has node id {client_id}")
            return self._stamp(Message(error, reply_to=message))
        message.content = _own_copy(message.content, shared)
        context = self._context(client_id)
        try:
            reply = self._app(message, context)
        except Exception as error:
            if self._raise_errors:
                error.add_note(f"raised by client {client_id} in {message.metadata.message_type!r}")
                raise
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self._keep(context)
        return self._finish(reply)

    def _finish(self, reply: Message) -> Message:
        """The reply as strategies read it: arrays decoded, numbered."""
        if reply.has_content():
            content = LocalContent.of(reply.content)
            for name, record in content.items():
                if isinstance(record, ArrayRecord):
                    fill(content, {name: decoded(record)})
            reply.content = content
        return self._stamp(reply)

    def _is_registered(self, message: Message) -> bool:
        client_id = self.roster.client(message.metadata.dst_node_id)
        return 0 <= client_id < self.roster.num_clients

    def _keep(self, context: Context) -> None:
        """Store what a client remembers, if anything."""
        if len(context.state) > 0:
            self.store.put(self.roster.client(context.node_id), context.state)

    def _context(self, client_id: int) -> Context:
        state = self.store.get(client_id)
        return Context(
            run_id=self._run.run_id,
            node_id=self.roster.node(client_id),
            node_config={"partition-id": client_id, "num-partitions": self.roster.num_clients},
            state=RecordDict() if state is None else state,
            run_config=self._run_config,
        )

    def _stamp(self, message: Message) -> Message:
        """Number the message; Flower's runtime hashes the content instead, which costs more."""
        message.metadata.__dict__["_message_id"] = str(next(self._serial))
        return message


def _own_copy(
    content: RecordDict, shared: dict[int, tuple[ArrayRecord, ArrayRecord]]
) -> RecordDict:
    """A content that one client may change without changing its neighbours'.

    Flower's strategies put the same records into every message of a round. The array values stay
    shared: they are handed out as copies or read only.
    """
    own = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            key = id(record)
            if key not in shared:  # the original is kept too, so that its id stays taken
                shared[key] = (record, decoded(record))
            own[name] = shared[key][1].copy()
        else:
            own[name] = record.copy()
    return own


def run_app(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_clients: int,
    run_config: UserConfig | None = None,
) -> Context:
    """Run an unmodified Flower app in this process.

    Args:
        server_app: The app's server side.
        client_app: The app's client side.
        num_clients: Number of clients.
        run_config: What ``context.run_config`` holds at both ends.

    Returns:
        The server's context after the run; ``state`` holds what the app left there.

    Raises:
        ValueError: If there is no client.
    """
    grid = LocalGrid(client_app, num_clients, run_config=run_config)
    context = Context(
        run_id=_RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )
    server_app(grid, context)
    return context
