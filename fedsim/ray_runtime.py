"""Flower's simulation runtime on Ray, in threads beside the one that drives the run.

Flower's parts do the work; what they lack for long runs is added here: a client process that dies
is started again and its message answered again from the same state, so the results stay the same; a
client that hangs is ended, and its message answered by an error.
"""

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import ray
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    PARTITION_ID_KEY,
    RUN_ID_NUM_BYTES,
    SUPERLINK_NODE_ID,
    TASK_ID_NUM_BYTES,
    ErrorCode,
)
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedsim.apps import BlockApp, client_app_of
from fedsim.checks import ConfigError, Node
from fedsim.contexts import Contexts
from fedsim.roster import NodeRoster, framed

_RETRIES = 2  # of a message whose process died
START_S = 1800.0  # for a process to import what it needs and load the data
_STOP_S = 10.0  # for the runtime's threads to end


def connect(address: str | None, *, num_cpus: float, num_gpus: float) -> None:
    """Start Ray on this machine, or join a running cluster.

    Args:
        address: Of the cluster, or None.
        num_cpus: CPU cores that a client needs.
        num_gpus: GPUs that a client needs.

    Raises:
        ConfigError: If the cluster does not answer, or no machine has room for a client.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    local = {} if address else {"include_dashboard": False}
    try:
        with warnings.catch_warnings(), _own_signals():
            warnings.simplefilter("ignore", FutureWarning)  # what Ray will change some day
            ray.init(
                address=address or "local",  # else Ray looks for the last cluster of this machine
                logging_level="ERROR",
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                **local,
            )
        pool_size_from_resources({"num_cpus": num_cpus, "num_gpus": num_gpus})
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        found = ray.cluster_resources() if ray.is_initialized() else None
        ray.shutdown()
        if found is None:
            raise ConfigError(
                f"engine.address={address}: no Ray cluster there ({error})"
            ) from error
        raise ConfigError(
            f"a client takes engine.num_cpus={num_cpus:g} and engine.num_gpus={num_gpus:g}, and Ray"
            f" has {found.get('CPU', 0):g} CPU cores and {found.get('GPU', 0):g} GPUs"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handling of signals: Ray would end the process without a word."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@lru_cache(maxsize=1)
def _app(config: str) -> BlockApp:
    """The client app of a configuration, built once a process."""
    from fedsim.build import build

    client = build({**json.loads(config), "logger": None}).client
    return client_app_of(lambda _: client)


class Answering(ClientApp):
    """The client app as Ray's processes run it: an exception becomes a reply that names it.

    Args:
        config: The run's resolved configuration, as JSON.
        trace: Whether to say where the exception was raised, too.
    """

    def __init__(self, config: str, *, trace: bool) -> None:
        super().__init__()
        self.config = config
        self._trace = trace

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        try:
            return _app(self.config)(message, context)
        except Exception as error:
            reason = framed(error, f"\n{traceback.format_exc()}" if self._trace else "")
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class Starting(Answering):
    """Builds the client app, so that a client's time is not spent on it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with the message itself; what is wrong will show when it is answered."""
        del context
        with suppress(Exception):
            _app(self.config)
        return message


class Backend(RayBackend):
    """Flower's Ray backend, whose processes come back when they die and end when they hang.

    Args:
        num_cpus: CPU cores that a client takes.
        num_gpus: Part of a GPU that a client takes.
        timeout: Seconds that a client may take for a message, or None.
    """

    def __init__(self, *, num_cpus: float, num_gpus: float, timeout: float | None) -> None:
        restart = {"max_restarts": -1, "max_task_retries": _RETRIES}
        super().__init__(
            {"client_resources": {"num_cpus": num_cpus, "num_gpus": num_gpus, **restart}}
        )
        self._timeout = timeout
        self._started: set[Any] = set()  # processes that have built the client app
        self._ended = False  # Ray would start anew for a message that comes later

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Answer a message in one of the processes."""
        if self.pool is None or self.app_fn is None or self._ended:
            raise RuntimeError("process_message() comes between build() and terminate()")
        job = (self.app_fn, message, str(context.node_config[PARTITION_ID_KEY]), context)
        starts: list[Any] = []

        def send(actor: Any, app_fn: Any, *rest: Any) -> Any:
            if actor not in self._started:
                self._started.add(actor)
                starts.append(actor.run.remote(partial(_starting, app_fn()), *rest))
            return actor.run.remote(app_fn, *rest)

        future = self.pool.submit(send, job)
        try:
            ray.get(starts, timeout=START_S)
            _, reply, updated = ray.get(future, timeout=self._timeout)
            self.pool.add_actor_back_to_pool(future)
            return reply, updated
        except ray.exceptions.GetTimeoutError:
            ray.kill(self.pool._future_to_actor.pop(future))
            self.pool.pool.append(self.pool.create_actor_fn())  # type: ignore[no-untyped-call]
            reason = f"no answer within {self._timeout:g} s"
        except Exception as error:
            self.pool.add_actor_back_to_pool(future)
            lost = isinstance(error, ray.exceptions.RayActorError)
            reason = f"its process died {_RETRIES + 1} times" if lost else _last_line(error)
        error_reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
        return error_reply, context

    def terminate(self) -> None:
        """End all processes, busy ones too, and leave Ray."""
        self._ended = True
        if ray.is_initialized():
            for actor in (
                [*self.pool.pool, *self.pool._future_to_actor.values()] if self.pool else ()
            ):
                ray.kill(actor)
            ray.shutdown()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


@contextmanager
def runtime(
    backend: Backend, node: Node, num_clients: int, *, trace: bool
) -> Iterator[tuple[InMemoryGrid, NodeRoster, Contexts, "Health"]]:
    """Flower's runtime while the block runs.

    Args:
        backend: Runs the clients.
        node: The run's resolved configuration.
        num_clients: Number of nodes.
        trace: Whether a client's error says where it was raised.

    Yields:
        The grid, which node is which client, what the clients remember, and whether the runtime
        still works.
    """
    factory = LinkStateFactory(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
    )
    run = _register_run(factory)
    grid = InMemoryGrid(factory)
    grid.set_run(run)
    client_of = vce_api._register_nodes(num_clients, factory)
    contexts = Contexts(client_of)
    nodes: Any = contexts  # Flower names a dictionary and asks for one node at a time
    app_fn = partial(_same, Answering(json.dumps(node), trace=trace))
    stop, health = threading.Event(), Health()

    def serve() -> None:
        try:
            vce_api.run_api(app_fn, lambda: backend, client_of, factory, nodes, stop, VceMetrics())
        except Exception as error:
            health.error = error

    thread = threading.Thread(target=serve, name="flower runtime", daemon=True)
    thread.start()
    try:
        yield grid, NodeRoster({client: n for n, client in client_of.items()}), contexts, health
    finally:
        stop.set()
        backend.terminate()
        thread.join(_STOP_S)


class Health:
    """Whether the runtime still works.

    Attributes:
        error: What ended it, or None.
    """

    error: Exception | None = None

    def check(self) -> None:
        """Raise RuntimeError if it does not."""
        if self.error is not None:
            raise RuntimeError(f"Flower's runtime ended: {self.error}") from self.error


def _same(app: Answering) -> Answering:
    return app


def _starting(app: Answering) -> Starting:
    return Starting(app.config, trace=False)


def _register_run(factory: LinkStateFactory) -> Run:
    """A run of Flower's, and this process as its server."""
    run = Run.create_empty(run_id=generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
    run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
    run.federation_id = NOOP_FEDERATION_ID
    state = factory.state()
    assert isinstance(state, InMemoryLinkState)  # the factory's database is in memory
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[run.primary_task_id] = Task(task_id=run.primary_task_id, run_id=run.run_id)
    TaskIdentity.task_id, TaskIdentity.run_id = 1, run.run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    return run
