"""Processes of a test: started on free ports, ended with all their children whatever happens."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 600  # on an idle machine nothing takes a twentieth of it
BIN = Path(sys.executable).parent


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Processes:
    """Started commands, each in its own folder with its output in ``log``."""

    def __init__(self, folder, **environment):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        }
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._running:
            _signal(process, signal.SIGKILL)
            process.wait()

    def start(self, name, *command, **environment):
        """Start a command in the background; its home for Flower is its own folder."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env={**self.environment, "FLWR_HOME": str(folder / "flwr"), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = folder / "log"
        self._running.append(process)
        return process

    def run(self, *command, cwd, **environment):
        """Run a command to its end."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


def wait_until(condition, what, *processes):
    """Wait for a condition; fails with the logs if it does not come or a process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        ended = [p for p in processes if p.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(f"== {p.log}\n{p.log.read_text()}" for p in processes)
            raise AssertionError(f"{what} did not come\n{logs}")
        time.sleep(0.1)


def _signal(process, number):
    """Signal a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
