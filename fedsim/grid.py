"""The in-process engine: a Flower ``Grid`` that hands messages straight to the ``ClientApp``."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.apps import BlockApp
from fedsim.cohort_plan import CohortSize
from fedsim.execution import AHEAD, Executor, Seen, UserConfig
from fedsim.replies import DEADLINE, addressee
from fedsim.roster import FIRST_NODE, LocalRoster
from fedsim.state import MemoryStore, Store
from fedsim.workers import Lost, WorkerPool
from fedsim.works import Done, Work, equal_parts, parts_of, shared_records

_RUN_ID = 1


class LocalGrid(Grid):
    """Runs a Flower ``ClientApp`` on this machine, without threads, sleeping or serialisation.

    Nothing is kept per registered client: a client's ``Context`` is made when a message arrives,
    and only a state that the client wrote is stored. Arrays of a payload shared by several
    messages are decoded once. Clients run in this process, one after the other, or in ``workers``
    of their own; results are the same bits.

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
        workers: Processes that clients run in. With one, clients run in this process, unless there
            is a timeout.
        timeout: Seconds that a client may take, or None. Its worker is killed then, and its reply
            is an error, ``deadline``.

    Raises:
        ValueError: If there is no client or no worker, or the timeout is not positive.
    """

    def __init__(  # noqa: PLR0913 - each is a line of conf/engine/local.yaml
        self,
        client_app: ClientApp,
        num_clients: int,
        *,
        run_config: UserConfig | None = None,
        store: Store | None = None,
        raise_errors: bool = False,
        order: Callable[[list[Message]], list[Message]] | None = None,
        cohort: CohortSize = "off",
        workers: int = 1,
        timeout: float | None = None,
    ) -> None:
        if num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {num_clients}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be positive or None, got {timeout}")
        self.roster = LocalRoster(num_clients)
        self.store: Store = MemoryStore() if store is None else store
        self._app = client_app
        self._raise_errors = raise_errors
        self._order = order
        self._cohort: CohortSize = cohort
        self._count, self._timeout = workers, timeout
        self._pool: WorkerPool[Work] | None = None
        self._node_ids: tuple[int, ...] | None = None
        self._serial = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(_RUN_ID)
        self._executor = Executor(
            client_app,
            self.roster,
            dict(run_config or {}),
            raise_errors=raise_errors,
            cohort=cohort,
        )
        # `Message` reads the sender from here; a process that runs a grid is the server
        TaskIdentity.run_id, TaskIdentity.node_id = _RUN_ID, SUPERLINK_NODE_ID
        TaskIdentity.task_id = 1

    @property
    def trains_blocks(self) -> bool:
        """Whether clients may be trained at once."""
        return self._cohort != "off"

    def __enter__(self) -> "LocalGrid":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, if there are any; the next message would start new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @property
    def worker_pids(self) -> list[int]:
        """Process numbers of the workers that have been started."""
        return [] if self._pool is None else self._pool.pids

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

    def nodes(self) -> range:
        """All node ids, ascending, without making them."""
        return range(FIRST_NODE, FIRST_NODE + self.roster.num_clients)

    def get_node_ids(self) -> Iterable[int]:
        """All node ids, ascending; the same tuple every time, so that copying it is cheap."""
        if self._node_ids is None:
            self._node_ids = tuple(self.nodes())
        return self._node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages now and keep the replies until they are pulled."""
        pushed = list(messages)
        replies = {r.metadata.reply_to_message_id: r for r in self.send_and_receive(pushed)}
        self._replies |= replies
        return [message.metadata.message_id for message in pushed]

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
        """Replies one by one, made when they are asked for: few are in memory at a time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        queue = sorted(messages, key=addressee)
        blocks = self._blocks(queue)
        if self._order is None:
            for _, replies in self._done(blocks, deadline):
                yield from replies
            return
        block_of = {id(m): number for number, block in enumerate(blocks) for m in block}
        numbers = dict.fromkeys(block_of[id(m)] for m in self._order(queue))
        done = dict(self._done([blocks[number] for number in numbers], deadline))
        yield from itertools.chain.from_iterable(done[node] for node in sorted(done))

    def _blocks(self, queue: list[Message]) -> list[list[Message]]:
        """The messages in parts that are answered at once, as equal as they can be."""
        app, size = self._app, 1
        alike = len({m.metadata.message_type for m in queue}) == 1
        known = all(0 <= self._client(m) < self.roster.num_clients for m in queue)
        if self._cohort != "off" and alike and known and isinstance(app, BlockApp):
            size = app.block_size(queue[0], self._context(self._client(queue[0])), self._cohort)
            size = min(size, self._executor.most)
        return equal_parts(queue, size, self._client)

    def _done(
        self, blocks: Sequence[list[Message]], deadline: float | None
    ) -> Iterator[tuple[int, list[Message]]]:
        """Answer blocks until the deadline; each one's first node and its replies."""
        works = self._works(blocks, deadline)
        if self._count == 1 and self._timeout is None:
            shared = Seen()
            results: Iterator[tuple[Work, Done]] = (
                (work, self._executor.run(work, shared)) for work in works
            )
        else:
            results = self._in_workers(blocks, works)
        for work, done in results:
            for client_id, state in done.states.items():
                self.store.put(client_id, state)
            if done.declined is not None and isinstance(self._app, BlockApp):
                context = self._context(self._client(work.messages[0]))
                self._app.decline(work.messages[0], context, self._cohort, done.declined)
            replies = [self._stamp(reply) for reply in done.replies]
            yield addressee(work.messages[0]), replies

    def _works(self, blocks: Sequence[list[Message]], deadline: float | None) -> Iterator[Work]:
        for number, block in enumerate(blocks):
            if deadline is not None and time.monotonic() > deadline:
                return
            if len(block) == 1 and number % AHEAD == 0 and self._count == 1:
                following = itertools.chain.from_iterable(blocks[number : number + AHEAD])
                self._executor.prefetch(list(following), self._run.run_id)
            for message in block:
                self._stamp(message)
            states = {}
            for client_id in dict.fromkeys(map(self._client, block)):
                if (state := self.store.get(client_id)) is not None:
                    states[client_id] = state
            yield Work(messages=block, states=states, run_id=self._run.run_id)

    def _in_workers(
        self, blocks: Sequence[list[Message]], works: Iterator[Work]
    ) -> Iterator[tuple[Work, Done]]:
        """Outcomes of works that other processes do."""
        if self._pool is None:
            self._pool = WorkerPool(
                self._executor.run_apart,
                self._count,
                cut=lambda work: parts_of(work, self._client),
                size=lambda work: len(work.messages),
                timeout=self._timeout,
            )
        for work, outcome in self._pool.run(works, shared_records(blocks)):
            done = self._lost(work, outcome) if isinstance(outcome, Lost) else outcome
            yield work, done.patched(work)

    def _lost(self, work: Work, lost: Lost) -> Done:
        """Error replies of clients that took too long or that workers died of."""
        if not lost.late and self._raise_errors:
            clients = ", ".join(str(self._client(message)) for message in work.messages)
            raise RuntimeError(f"worker processes die when they run client {clients}")
        reason = (
            f"{DEADLINE}: no reply within {self._timeout} s" if lost.late else "its workers died"
        )
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        return Done(replies=[Message(error, reply_to=message) for message in work.messages])

    def _client(self, message: Message) -> int:
        return self.roster.client(addressee(message))

    def _context(self, client_id: int) -> Context:
        return self._executor.context(client_id, self._run.run_id, self.store.get(client_id))

    def _stamp(self, message: Message) -> Message:
        """Number the message; Flower's runtime hashes the content instead, which costs more."""
        message.__dict__["_metadata"].__dict__["_message_id"] = str(next(self._serial))
        return message


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
