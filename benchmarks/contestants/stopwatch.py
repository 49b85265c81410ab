"""When rounds began and ended, in the clocks of the benchmark, and what a contestant reports."""

import json
import os
import platform
import sys
import time
from importlib import metadata

START = "FEDSIM_PEERS_START"  # time.monotonic() when the process was started
WEIGHTS = "FEDSIM_PEERS_WEIGHTS"  # the file for the final weights
MARK = "RESULT "  # before the line of the result


class Stopwatch:
    """Takes the time at the start of the first round and at the end of every round.

    Args:
        tree: Whether CPU seconds of child processes count, which takes psutil.
    """

    def __init__(self, *, tree: bool = False) -> None:
        self._tree = tree
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def mark(self) -> None:
        """A round begins or ends."""
        self._cpu.append(time.process_time() + (children_seconds() if self._tree else 0.0))
        self._wall.append(time.monotonic() - float(os.environ[START]))

    def report(self, packages: list[str], weights: object = None, **more: object) -> None:
        """Print the result.

        Args:
            packages: Whose versions are told.
            weights: The final weights as one NumPy vector, or None.
            more: Further numbers.
        """
        if weights is not None:
            import numpy as np

            np.save(os.environ[WEIGHTS], weights)  # type: ignore[arg-type]
        versions = {name: metadata.version(name) for name in packages}
        versions["python"] = platform.python_version()
        result = {"wall": self._wall, "cpu": self._cpu, "versions": versions, **more}
        result["peak"] = most_resident()  # so far: a process that ends loads pages once more
        print(MARK + json.dumps(result), flush=True)


def most_resident() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def children_seconds() -> float:
    """CPU seconds of all descendants, those that have ended included."""
    import psutil  # type: ignore[import-untyped]

    ended = os.times()
    seconds = ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:
            continue
    return seconds
