"""What is done together: messages in parts, and what becomes of them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.arrays import fill

Record = ArrayRecord | ConfigRecord | MetricRecord
States = dict[int, RecordDict]  # client to what it remembers
Shared = Mapping[int, ArrayRecord]  # records of several messages, by number


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Messages that are answered together.

    Attributes:
        messages: In client order; a client's own messages are never split over two works.
        states: What those clients remember that remember anything.
        run_id: Flower's number of the run.
    """

    messages: list[Message]
    states: States
    run_id: int


@dataclass(slots=True, kw_only=True)
class Done:
    """What became of a work.

    Attributes:
        replies: In the order of the messages.
        states: What the clients remember now.
        declined: Why the app trains clients one by one from now on; None if it does not.
        patches: Instead of states, where most of one is as it was: every record's name with the
            record, or None for the one that the client had before.
    """

    replies: list[Message]
    states: States = field(default_factory=dict)
    declined: str | None = None
    patches: dict[int, list[tuple[str, Record | None]]] = field(default_factory=dict)

    def patched(self, work: Work) -> "Done":
        """The same with whole states, at the end that has the former ones."""
        for client_id, patch in self.patches.items():
            before = work.states.get(client_id, RecordDict())
            records = {name: before[name] if new is None else new for name, new in patch}
            self.states[client_id] = fill(RecordDict(), records)
        self.patches = {}
        return self


def equal_parts(
    messages: Sequence[Message], size: int, client: Callable[[Message], int]
) -> list[list[Message]]:
    """The messages in parts of as equal sizes as they can be.

    Args:
        messages: Each client's side by side; they stay together.
        size: Clients of a part at most.
        client: Whom a message is for.
    """
    clients = [list(group) for _, group in itertools.groupby(messages, client)]
    count = -(-len(clients) // size)
    cuts = [len(clients) * number // max(count, 1) for number in range(count + 1)]
    parts = [clients[start:end] for start, end in itertools.pairwise(cuts)]
    return [list(itertools.chain.from_iterable(part)) for part in parts]


def parts_of(work: Work, client: Callable[[Message], int]) -> list[Work]:
    """A work for each of the clients.

    Args:
        work: Messages, each client's side by side.
        client: Whom a message is for.
    """
    return [
        Work(
            messages=list(messages),
            states={c: state for c, state in work.states.items() if c == client_id},
            run_id=work.run_id,
        )
        for client_id, messages in itertools.groupby(work.messages, client)
    ]


def shared_records(blocks: Sequence[list[Message]]) -> Shared:
    """Array records that several messages carry, decoded, by number."""
    seen: dict[int, ArrayRecord] = {}
    shared: dict[int, ArrayRecord] = {}
    for message in itertools.chain.from_iterable(blocks):
        for record in message.content.values():
            if isinstance(record, ArrayRecord):
                if id(record) in seen:
                    shared[id(record)] = record
                seen[id(record)] = record
    return dict(enumerate(shared.values()))
