"""Ctrl-C and SIGTERM: when they stop a run, and with which exit code."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AGAIN_S = 0.2  # some launchers pass a signal on that the terminal sent us as well


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell expects of a process that a signal ended: 130 after Ctrl-C, 143 on SIGTERM."""
    return 128 + int(getattr(error, "signum", signal.SIGINT))


class Interruption:
    """While entered, turns SIGINT, SIGTERM and SIGHUP into :class:`Interrupted`.

    A second signal ends the process at once. Signals that the process ignores stay ignored, and
    outside the main thread nothing changes. Entering gives the one that is entered already, if any.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._asked: int | None = None  # the signal
        self._since = 0.0
        self._depth = 0

    def __enter__(self) -> "Interruption":
        entered = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(entered, Interruption):
            return entered
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
                if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
                    self._former[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        self._former = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A part of the work that a first signal does not tear apart.

        Raises:
            Interrupted: At its end, if a signal came.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._asked is not None and self._depth == 0:
            raise Interrupted(self._asked)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if self._asked is not None:
            if now - self._since > _AGAIN_S:
                os._exit(128 + signum)
            return
        self._asked, self._since = signum, now
        if self._depth == 0:
            raise Interrupted(signum)


@contextmanager
def unbroken() -> Iterator[None]:
    """Imports that a signal waits for: torch swallows one and is left half imported.

    Raises:
        Interrupted: At the end, if a signal came.
    """
    with Interruption() as interruption, interruption.deferred():
        yield
