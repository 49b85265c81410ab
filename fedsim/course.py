"""A client's part in a round, with what goes wrong on purpose and what does not travel."""

from collections.abc import Callable, Sequence

from flwr.app import Message

from fedsim.client import Client
from fedsim.cohort_evaluation import CohortEvaluation
from fedsim.cohort_plan import Cohort
from fedsim.replies import block_reply
from fedsim.state import ClientState
from fedsim.wire import Download, Upload, to_reply

Turn = tuple[Message, Download, ClientState]  # what came, the same decoded, who remembers what


def trained(client: Client, message: Message, down: Download, state: ClientState) -> Message:
    """The reply of a client that trains."""
    failure = _failure(client, message, down)
    if failure is not None:
        return failure
    upload = client.train(received(client, down, state), state)
    return to_reply(_sent(client, upload, down, state), message)


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
            reply = block_reply(sent, message, down.tick.round)
            replies[place] = to_reply(sent, message) if reply is None else reply
    return [reply for reply in replies.values() if reply is not None]


def tested_block(
    cohort: CohortEvaluation, turns: Sequence[Turn], spare: Callable[[int], ClientState]
) -> list[Message]:
    """The replies of clients that are tested at once; see :func:`trained_block`."""
    states = [state for _, _, state in turns]
    downs = [received(cohort.client, down, state) for _, down, state in turns]
    uploads = cohort.run(downs, states, spare)
    return [to_reply(upload, turn[0]) for upload, turn in zip(uploads, turns, strict=True)]


def tested(client: Client, down: Download, state: ClientState) -> Upload:
    """What a client, or the server with a download for nobody, measures."""
    return client.evaluate(received(client, down, state), state)


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
