"""A client's part in a round, with what goes wrong on purpose and what does not travel."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from flwr.app import Message

from fedsim.client import Client
from fedsim.cohort_evaluation import CohortEvaluation
from fedsim.cohort_plan import Cohort
from fedsim.replies import local_reply
from fedsim.state import ClientState
from fedsim.wire import Download, Upload, to_reply

Turn = tuple[Message, Download, ClientState]  # what came, the same decoded, who remembers what


def trained(
    client: Client, message: Message, down: Download, state: ClientState, *, travels: bool = True
) -> Message:
    """The reply of a client that trains.

    Args:
        client: Serves all clients of the process.
        message: What this one received.
        down: The same decoded.
        state: What it remembers; written to.
        travels: Whether the reply may leave the process.
    """
    failure = _failure(client, message, down)
    if failure is not None:
        return failure
    upload = client.train(received(client, down, state), state)
    sent = _sent(client, upload, down, state)
    return to_reply(sent, message) if travels else _reply(sent, message, down)


def trained_block(
    cohort: Cohort, turns: Sequence[Turn], spare: Callable[[int], ClientState]
) -> list[Message]:
    """The replies of clients that train at once, in the order of their turns.

    Args:
        cohort: Trains them.
        turns: What each received.
        spare: A fresh copy of the state that a client came with, by its place among the turns.

    Raises:
        UnstackableError: If the clients cannot be trained at once.
    """
    client = cohort.client
    replies = {place: _failure(client, *turn[:2]) for place, turn in enumerate(turns)}
    places = [place for place, failure in replies.items() if failure is None]
    if places:
        states = [turns[place][2] for place in places]
        downs = [received(client, turns[place][1], turns[place][2]) for place in places]
        uploads = cohort.train(downs, states, lambda place: spare(places[place]))
        for place, upload in zip(places, uploads, strict=True):
            message, down, state = turns[place]
            sent = _sent(client, upload, down, state)
            replies[place] = _reply(sent, message, down)
    return [reply for reply in replies.values() if reply is not None]


def tested_block(
    cohort: CohortEvaluation, turns: Sequence[Turn], spare: Callable[[int], ClientState]
) -> list[Message]:
    """The replies of clients that are tested at once; see :func:`trained_block`."""
    states = [state for _, _, state in turns]
    downs = [received(cohort.client, down, state) for _, down, state in turns]
    uploads = cohort.run(downs, states, spare)
    return [_reply(upload, turn[0], turn[1]) for upload, turn in zip(uploads, turns, strict=True)]


def tested_here(client: Client, message: Message, down: Download, state: ClientState) -> Message:
    """The reply, which stays in the process, of a client that is tested."""
    return _reply(tested(client, down, state), message, down)


def tested(client: Client, down: Download, state: ClientState) -> Upload:
    """What a client, or the server with a download for nobody, measures."""
    return client.evaluate(received(client, down, state), state)


def _reply(upload: Upload, message: Message, down: Download) -> Message:
    """A reply that need not leave the process."""
    if down.client_id is not None and upload.client_id != down.client_id:
        upload = replace(upload, client_id=down.client_id)  # who sent it is not for it to say
    return local_reply(upload, message, down.tick.round) or to_reply(upload, message)


def _failure(client: Client, message: Message, down: Download) -> Message | None:
    faults = client.setting.faults
    return None if faults is None else faults.failure(message, down)


def received(client: Client, down: Download, state: ClientState) -> Download:
    """The download with what does not travel."""
    running = client.setting.running
    return down if running is None else running.received(down, state)


def _sent(client: Client, upload: Upload, down: Download, state: ClientState) -> Upload:
    running, faults = client.setting.running, client.setting.faults
    if running is not None:
        upload = running.sent(upload, state)
    return upload if faults is None else faults.spoil(upload, down)
