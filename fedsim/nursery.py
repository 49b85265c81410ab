"""A process that forks workers when it is asked to, and what a worker does.

It is forked when a run's workers are first needed and then holds still, so that every worker, even
one that replaces another late in the run, starts from the same clean state, whatever the run's own
process has done in the meantime.
"""

import ctypes
import gc
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import torch
from flwr.app import ArrayRecord

from fedsim.parcels import pack, receive, send, unpack, unpack_shared

SHARED, WORK, RESULT, FAILURE = range(4)  # kinds of parcels
Do = Callable[[Any, Mapping[int, ArrayRecord]], Any]

_NUMBER = struct.Struct("<q")
_DIE_WITH_PARENT = 1  # Linux: prctl(PR_SET_PDEATHSIG)


class Nursery:
    """The run's end of the connection.

    Args:
        do: What workers do with a work, given the shared records.
    """

    def __init__(self, do: Do) -> None:
        self._connection, theirs = socket.socketpair()
        self._pid = _fork(partial(_tend, theirs, do), closing=[self._connection])
        theirs.close()

    def born(self, instead_of: int = 0) -> tuple[int, socket.socket]:
        """A new worker: its process number and the socket to it.

        Args:
            instead_of: A worker that is to be killed first, if it still lives; 0 for none.

        Raises:
            RuntimeError: If the nursery is gone.
        """
        try:
            self._connection.sendall(_NUMBER.pack(instead_of))
            answer, files, _, _ = socket.recv_fds(self._connection, _NUMBER.size, 1)
        except OSError:
            answer, files = b"", []
        if not files:
            raise RuntimeError("the process that starts workers was killed; start the run again")
        return _NUMBER.unpack(answer)[0], socket.socket(fileno=files[0])

    def close(self) -> None:
        """End the nursery and all workers."""
        self._connection.close()
        with suppress(ChildProcessError):  # someone has waited already, or it is not ours
            os.waitpid(self._pid, 0)


def _fork(child: Callable[[], None], closing: list[socket.socket]) -> int:
    """Fork; the child closes some sockets, runs and exits without the parent's clean-up."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's own affair
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for connection in closing:
            connection.close()
        child()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tend(connection: socket.socket, do: Do) -> None:
    """Fork workers until the run is gone, then kill them."""
    living: set[int] = set()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # the first imports for a second
    gc.collect()
    gc.freeze()  # a collection in a worker would write to all memory that is shared so far
    try:
        while request := connection.recv(_NUMBER.size):
            (dead,) = _NUMBER.unpack(request)
            if dead in living:
                _bury(dead)
                living.remove(dead)
            ours, theirs = socket.socketpair()
            pid = _fork(partial(serve, theirs, do), closing=[connection, ours])
            living.add(pid)
            theirs.close()
            socket.send_fds(connection, [_NUMBER.pack(pid)], [ours.fileno()])
            ours.close()
    finally:
        for pid in living:
            _bury(pid)


def _bury(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # it is our child and has not been waited for: the number is its
    os.waitpid(pid, 0)


def serve(connection: socket.socket, do: Do) -> None:
    """Do works until the run is gone."""
    _die_with_parent()
    torch.set_num_threads(1)
    shared: Mapping[int, ArrayRecord] = {}
    while True:
        try:
            kind, parcel = receive(connection)
        except (EOFError, OSError):
            return
        if kind == SHARED:
            shared = unpack_shared(parcel)
            os.close(parcel.file)
            continue
        work = unpack(parcel, shared)
        os.close(parcel.file)
        try:
            kind, answer = RESULT, pack(do(work, shared))
        except Exception as error:
            kind, answer = FAILURE, pack(_portable(error))
        del work
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            send(connection, kind, answer)
        except OSError:
            return
        os.close(answer.file)


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same, in a form that can be sent."""
    place = "".join(traceback.format_tb(error.__traceback__)[-3:])
    error.add_note(f"in a worker process:\n{place.rstrip()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        for note in error.__notes__:
            substitute.add_note(note)
        return substitute
    return error


def _die_with_parent() -> None:
    """Let the system kill this process when its parent ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
