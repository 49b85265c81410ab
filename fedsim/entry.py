"""The commands: each answers Ctrl-C with one line, from before its imports on.

Imports take from a part of a second to several. A signal that tears one apart may be swallowed or
shown as an error of the module, so meanwhile it ends the process at once: nothing has begun yet.
"""

import importlib
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """The ``fedsim`` command; see :mod:`fedsim.main`."""
    _run("fedsim", "fedsim.main")


def pretrain() -> None:
    """The ``fedsim-pretrain`` command; see :mod:`fedsim.pretrain`."""
    _run("fedsim-pretrain", "fedsim.pretrain")


def reproduce() -> None:
    """The ``fedsim-reproduce`` command; see :mod:`fedsim.reproduce`."""
    _run("fedsim-reproduce", "fedsim.reproduce", "; the same command goes on from here")


def preview() -> None:
    """The ``fedsim-preview`` command; see :mod:`fedsim.preview`."""
    _run("fedsim-preview", "fedsim.preview")


def report() -> None:
    """The ``fedsim-report`` command; see :mod:`fedsim.report.command`."""
    _run("fedsim-report", "fedsim.report.command")


def _run(command: str, module: str, way_on: str = "") -> None:
    """Import the module and call its ``main``.

    Args:
        command: What the user called.
        module: By its full name.
        way_on: What is said of an interruption once the command has begun.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, f"\n{command}: interrupted; nothing had been run\n".encode())
        os._exit(128 + signum)

    python_answers = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if python_answers:  # else it is ignored, as it is in the background
        signal.signal(signal.SIGINT, end)
    begin = importlib.import_module(module).main
    try:
        if python_answers:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        begin()
    except KeyboardInterrupt as error:
        from fedsim.interruption import exit_code

        print(f"\n{command}: interrupted{way_on}", file=sys.stderr)
        sys.exit(exit_code(error))
