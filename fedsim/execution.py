"""Answers messages with the client app: one by one, or a block of clients at once."""

import errno
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsim.apps import BlockApp
from fedsim.arrays import LocalContent, decoded, fill
from fedsim.cohort_plan import CohortSize
from fedsim.replies import LocalReply, addressee
from fedsim.roster import LocalRoster
from fedsim.wire import Decoded
from fedsim.works import Done, Shared, States, Work

UserConfig = dict[str, bool | float | int | str]
AHEAD = 32  # clients whose data is cut at once, where they are trained one by one
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was decoded of messages that live at the same time.

    Attributes:
        contents: For apps that read them in place.
        records: For apps that get copies of their own; by id a record, kept, and it decoded.
    """

    contents: Decoded = field(default_factory=Decoded)
    records: dict[int, tuple[ArrayRecord, ArrayRecord]] = field(default_factory=dict)


class Executor:
    """Runs the client app.

    Args:
        app: The app every client runs.
        roster: Which node is which client.
        run_config: The ``run_config`` of every context.
        raise_errors: Whether an exception in a client is raised, with the client named. Else it
            becomes an error reply, as on Flower's own engines.
        cohort: Clients of a fedsim app that are trained at once.
    """

    def __init__(
        self,
        app: ClientApp,
        roster: LocalRoster,
        run_config: UserConfig,
        *,
        raise_errors: bool,
        cohort: CohortSize,
    ) -> None:
        self.app = app
        self._roster = roster
        self._run_config = run_config
        self._raise_errors = raise_errors
        self._cohort: CohortSize = cohort
        self._declined: set[str] = set()  # types of messages that are answered one by one
        self.most = sys.maxsize  # clients at once that memory has been enough for so far

    def run(self, work: Work, shared: Seen) -> Done:
        """Answer the messages at once or, if that is not possible, one by one.

        Args:
            work: The messages.
            shared: What was decoded before of these and other messages; filled here.
        """
        done = None
        app, reason = self.app, None
        kind = work.messages[0].metadata.message_type
        if len(work.messages) > 1 and isinstance(app, BlockApp) and kind not in self._declined:
            done, reason = self._run_block(app, work)
        if done is None:
            done = Done(replies=[], states=dict(work.states))
            for message in work.messages:
                done.replies.append(self._answer(message, work.run_id, done.states, shared))
            if reason is not None:
                done.declined = reason
                self._declined.add(kind)
        done.replies = [_finished(reply) for reply in done.replies]
        return done

    def prefetch(self, messages: Sequence[Message], run_id: int) -> None:
        """Cut the data of clients that are about to be trained one by one."""
        types = {message.metadata.message_type for message in messages}
        if not isinstance(self.app, BlockApp) or types != {MessageType.TRAIN}:
            return
        ids = [self._roster.client(addressee(message)) for message in messages]
        known = [client_id for client_id in ids if 0 <= client_id < self._roster.num_clients]
        if len(known) > 1:
            try:
                self.app.prefetch(messages[0], self.context(known[0], run_id, None), known)
            except Exception:  # whose data it is that cannot be had shows when they are trained
                _LOG.debug("data cannot be cut ahead", exc_info=True)

    def run_apart(self, work: Work, shared: Shared) -> Done:
        """The same in another process than the one that keeps the states.

        What a fedsim client has not written to is not sent back.
        """
        del shared  # the messages refer to its records
        before = {client: dict(state.items()) for client, state in work.states.items()}
        done = self.run(work, Seen())
        if isinstance(self.app, BlockApp):
            for client, state in done.states.items():
                old = before.get(client, {})
                done.patches[client] = [
                    (name, None if _is_same(record, old.get(name)) else record)
                    for name, record in state.items()
                ]
            done.states = {}
        return done

    def context(self, client_id: int, run_id: int, state: RecordDict | None) -> Context:
        """What a client knows of itself."""
        return Context(
            run_id=run_id,
            node_id=self._roster.node(client_id),
            node_config={"partition-id": client_id, "num-partitions": self._roster.num_clients},
            state=RecordDict() if state is None else state,
            run_config=self._run_config,
        )

    def _run_block(self, app: BlockApp, work: Work) -> tuple[Done | None, str | None]:
        """The block's replies or, if it cannot be trained at once, why."""
        ids = [self._roster.client(addressee(message)) for message in work.messages]
        if len(set(ids)) < len(ids):
            return None, None
        if len(ids) > self.most:
            return self._run_halves(work), None
        contexts = [self.context(c, work.run_id, work.states.get(c)) for c in ids]
        replies = None
        try:
            replies = app.run_block(work.messages, contexts, self._cohort)
        except Exception as error:  # one by one shows whose error it is, or that there is none
            if not is_out_of_memory(error):
                return None, f"a block failed with {type(error).__name__}: {error}"
        if replies is None:  # only now is the error gone, and with it all that the block had made
            self._shrink(len(ids) // 2)
            return self._run_halves(work), None
        states = {c: x.state for c, x in zip(ids, contexts, strict=True) if len(x.state) > 0}
        return Done(replies=replies, states=states), None

    def _shrink(self, most: int) -> None:
        """Note that memory is too small for more clients at once, and free what can be freed."""
        self.most = most
        _LOG.warning("out of memory: at most %d clients at once from now on", most)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_halves(self, work: Work) -> Done:
        """The same clients in smaller blocks, since memory is too small for all of them at once."""
        middle = len(work.messages) // 2
        whole = Done(replies=[])
        for messages in (work.messages[:middle], work.messages[middle:]):
            ids = [self._roster.client(addressee(message)) for message in messages]
            states = {c: work.states[c] for c in ids if c in work.states}
            done = self.run(replace(work, messages=messages, states=states), Seen())
            whole.replies += done.replies
            whole.states |= done.states
            whole.declined = whole.declined or done.declined
        return whole

    def _answer(self, message: Message, run_id: int, states: States, shared: Seen) -> Message:
        """Run one message and return its reply."""
        client_id = self._roster.client(message.metadata.dst_node_id)
        if not 0 <= client_id < self._roster.num_clients:
            error = Error(ErrorCode.NODE_UNAVAILABLE, f"no client has node id {client_id}")
            return Message(error, reply_to=message)
        context = self.context(client_id, run_id, states.get(client_id))
        try:
            if isinstance(self.app, BlockApp):
                reply = self.app.answer(message, context, shared.contents)
            else:
                message.content = _own_copy(message.content, shared.records)
                reply = self.app(message, context)
        except Exception as error:
            if self._raise_errors:
                error.add_note(f"raised by client {client_id} in {message.metadata.message_type!r}")
                raise
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        if len(context.state) > 0:
            states[client_id] = context.state
        return reply


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was asked for and not given, on a GPU or by the operating system.

    PyTorch's allocator for CPUs, and others than CUDA's, raise a plain ``RuntimeError``.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _is_same(new: object, old: object) -> bool:
    """Whether a record of a fedsim client's state is as it was: array groups are never changed."""
    return new is old and isinstance(new, ArrayRecord)


def _finished(reply: Message) -> Message:
    """The reply as strategies read it: arrays decoded."""
    if reply.has_content() and not isinstance(reply, LocalReply):
        content = LocalContent.of(reply.content)
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                fill(content, {name: decoded(record)})
        reply.content = content
    return reply


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
