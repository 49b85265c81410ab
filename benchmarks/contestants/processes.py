"""Runs a contestant as a process of its own and measures it from outside."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from workloads import FOLDER, ROUNDS

from contestants.stopwatch import MARK, START, WEIGHTS

BENCHMARKS = Path(__file__).parents[1]
_EVERY_S = 0.1  # between two looks at the memory
_LAST_WORDS = 12  # lines of a contestant that fails


class FailedError(RuntimeError):
    """A contestant ended without a result; the text is the end of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where contestants run.

    Attributes:
        folder: For weights; it outlives the processes.
        core: The CPU core that all of them share, or None where a system cannot tie them to one.
        timeout: Seconds after which a contestant is ended.
    """

    folder: Path
    core: int | None
    timeout: float

    def run(self, python: str, arguments: list[str], rounds: int) -> dict[str, Any]:
        """The result that it printed, with ``memory`` in bytes, ``seconds`` and ``cpu_seconds``.

        Memory is the most that was resident until the result was there. Of several processes at
        once it is the largest sum of their proportional shares: what they share counts once.

        Raises:
            FailedError: If it printed none.
        """
        with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as output:
            start = time.monotonic()
            process = subprocess.Popen(
                [python, *arguments],
                cwd=place,
                env=self._environment(rounds, start),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=self._tie if self.core is not None else None,
                start_new_session=True,
            )
            memory = _Memory(process.pid)
            code = self._end(process, memory, start)
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        found = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
        if not found:
            words = "\n".join(lines[-_LAST_WORDS:])
            raise FailedError(f"{' '.join(arguments)} ended with code {code}:\n{words}")
        result: dict[str, Any] = json.loads(found[-1])
        seconds = time.monotonic() - start
        most = max(result.pop("peak", 0), memory.peak)
        return {**result, "memory": most, "seconds": seconds, "load": os.getloadavg()[0]}

    def _tie(self) -> None:
        assert self.core is not None
        os.sched_setaffinity(0, {self.core})

    def _environment(self, rounds: int, start: float) -> dict[str, str]:
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        quiet = {"TQDM_DISABLE": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        return {
            **os.environ,
            **dict.fromkeys(threads, "1"),
            **quiet,
            "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent))),
            FOLDER: str(self.folder),
            WEIGHTS: str(self.folder / "final.npy"),
            ROUNDS: str(rounds),
            START: repr(start),
        }

    def _end(self, process: subprocess.Popen[bytes], memory: "_Memory", start: float) -> int:
        """Wait for the end and look at the memory meanwhile; the exit code."""
        watcher = threading.Thread(target=memory.watch, daemon=True)
        watcher.start()
        try:
            return process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            words = f"a contestant took more than {time.monotonic() - start:.0f} s"
            print(words, file=sys.stderr)
            return -1
        finally:
            memory.over.set()
            _end_tree(process)
            watcher.join()


class _Memory:
    """The most memory that a process and its children held, while it had some."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self.over = threading.Event()
        self._process = psutil.Process(pid)

    def watch(self) -> None:
        """Look until it is over."""
        while not self.over.wait(_EVERY_S):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                if len(family) > 1:
                    self.peak = max(self.peak, _resident(family))
            except psutil.Error:
                continue


def _resident(family: list[psutil.Process]) -> int:
    total = 0
    for process in family:
        try:
            found = process.memory_full_info()
            total += getattr(found, "pss", found.uss)
        except psutil.Error:
            continue  # it has just ended
    return total


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a contestant."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True)]
    except psutil.Error:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
    if process.poll() is None:
        process.kill()
        process.wait()


def version_of(python: str, package: str) -> str | None:
    """The version of a package in an environment, or None without it."""
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
