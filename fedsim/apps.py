"""Flower apps around a client: in process, and as the app that Flower's own engines start.

On Flower's engines both ends compose the same configuration from one string, ``overrides`` in the
run config, and build their parts once per process::

    flwr run . --run-config "overrides='experiment=replay_digits_staggered seed=1'"
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim.checks import Node
from fedsim.client import Client
from fedsim.cohort_evaluation import CohortEvaluation
from fedsim.cohort_plan import Cohort, CohortSize
from fedsim.cohort_views import UnstackableError
from fedsim.course import received, tested, tested_block, tested_here, trained, trained_block
from fedsim.state import ClientState
from fedsim.wire import NUM_EXAMPLES, Decoded, client_number, round_of, to_download, to_reply

_ENGINE = "engine=superlink"  # what the overrides of a run config are applied to


class BlockApp(ClientApp):
    """A Flower ``ClientApp`` around a fedsim client that can train or test several at once.

    Args:
        client_for: Gives the process's client.
    """

    def __init__(self, client_for: Callable[[Context], Client]) -> None:
        super().__init__()
        self._client_for = client_for
        self._cohorts: dict[tuple[str, CohortSize], Cohort | CohortEvaluation] = {}

    def block_size(self, message: Message, context: Context, wanted: CohortSize) -> int:
        """How many clients are trained or tested at once at most, given one of their messages.

        Args:
            message: Addressed to the client of the context.
            context: That client's.
            wanted: Clients a block; ``auto`` chooses by the workload, ``off`` is one.
        """
        cohort = self._cohort(message, context, wanted)
        if cohort is None:
            return 1
        down = to_download(message, context, cohort.client.setting.clock)
        state = ClientState(_copied(context.state))
        return cohort.size(received(cohort.client, down, state), state)

    def run_block(
        self, messages: Sequence[Message], contexts: Sequence[Context], wanted: CohortSize
    ) -> list[Message]:
        """Train or test the clients of these contexts at once.

        Contexts are only written to when all clients are done.

        Raises:
            UnstackableError: If it cannot be done at once; then it will not be from now on.
        """
        cohort = self._cohort(messages[0], contexts[0], wanted)
        if cohort is None:
            raise UnstackableError("it is neither training nor testing")
        decoded = Decoded()
        clock = cohort.client.setting.clock
        downs = [
            to_download(*pair, clock, decoded) for pair in zip(messages, contexts, strict=True)
        ]
        states = [_copied(context.state) for context in contexts]
        turns = list(zip(messages, downs, map(ClientState, states), strict=True))

        def spare(place: int) -> ClientState:
            return ClientState(_copied(contexts[place].state))

        try:
            if isinstance(cohort, Cohort):
                replies = trained_block(cohort, turns, spare)
            else:
                replies = tested_block(cohort, turns, spare)
        except UnstackableError as error:
            cohort.decline(str(error))
            raise
        for context, state in zip(contexts, states, strict=True):
            context.state = state
        return replies

    def answer(self, message: Message, context: Context, decoded: Decoded) -> Message:
        """Call the app for a reply that stays in this process; the message is read in place.

        Args:
            message: What the client receives.
            context: The client's.
            decoded: Contents of messages that were decoded before; filled here.
        """
        kind = message.metadata.message_type
        if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
            return self(message, context)
        client = self._client_for(context)
        down = to_download(message, context, client.setting.clock, decoded)
        down = replace(down, config={**down.config})  # others' are the same object
        state = ClientState(context.state)
        if kind == MessageType.TRAIN:
            return trained(client, message, down, state, travels=False)
        return tested_here(client, message, down, state)

    def prefetch(self, message: Message, context: Context, client_ids: Sequence[int]) -> None:
        """Cut the data of clients that will be trained one after the other, all at once.

        Args:
            message: One of those that they will get.
            context: The context of one of them.
            client_ids: Who they are.
        """
        round_ = round_of(message.content)
        if round_ is not None:
            self._client_for(context).setting.prefetch(round_, client_ids)

    def decline(self, message: Message, context: Context, wanted: CohortSize, reason: str) -> None:
        """Answer messages of this type one by one from now on."""
        cohort = self._cohort(message, context, wanted)
        if cohort is not None:
            cohort.decline(reason)

    def _cohort(
        self, message: Message, context: Context, wanted: CohortSize
    ) -> Cohort | CohortEvaluation | None:
        client, kind = self._client_for(context), message.metadata.message_type
        key = kind, wanted
        if key not in self._cohorts or self._cohorts[key].client is not client:
            if kind == MessageType.TRAIN:
                self._cohorts[key] = Cohort(client, wanted)
            elif kind == MessageType.EVALUATE:
                self._cohorts[key] = CohortEvaluation(client, wanted)
            else:
                return None
        return self._cohorts[key]


def _copied(state: RecordDict) -> RecordDict:
    """A state that can be written to without changing the original; arrays are shared."""
    copy = RecordDict()
    for name, record in state.items() if state else ():
        copy[name] = record if isinstance(record, ArrayRecord) else record.copy()
    return copy


def client_app_of(client_for: Callable[[Context], Client]) -> BlockApp:
    """A Flower ``ClientApp`` that trains and evaluates with a fedsim client.

    Args:
        client_for: Gives the process's client.
    """
    app = BlockApp(client_for)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_for(context)
        down = to_download(message, context, client.setting.clock)
        return trained(client, message, down, ClientState(context.state))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_for(context)
        down = to_download(message, context, client.setting.clock)
        return to_reply(tested(client, down, ClientState(context.state)), message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        client_for(context)  # a node that cannot build its client says so before the first round
        metrics = MetricRecord({"client": client_number(context), NUM_EXAMPLES: 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@lru_cache(maxsize=1)
def _client(overrides: str) -> Client:
    from fedsim.build import build

    return build({**_node(overrides), "logger": None}).client


def _node(overrides: str) -> Node:
    """The resolved configuration of a run that Flower started."""
    from fedsim.config import compose, resolve

    return resolve(compose([_ENGINE, *shlex.split(overrides)]))


client_app = client_app_of(lambda context: _client(str(context.run_config.get("overrides", ""))))
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured simulation over Flower's nodes.

    Results go where ``fedsim`` would put them, under the folder in which the SuperLink was started.

    Raises:
        ConfigError: If the configuration cannot work, or chooses an engine.
    """
    from fedsim.config import compose_run, resolve
    from fedsim.flower_engine import SuperLinkEngine
    from fedsim.main import simulate

    started = time.perf_counter()
    overrides = str(context.run_config.get("overrides", ""))
    composed = compose_run([_ENGINE, *shlex.split(overrides)])
    run_dir = composed.run_dir.absolute()
    print(f"fedsim: results go to {run_dir}", flush=True)
    node = resolve(composed.config)
    simulate(node, run_dir, started=started, engine=SuperLinkEngine.of(node, grid))
    composed.save(run_dir)
