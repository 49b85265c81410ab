"""Signals, as a process gets them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fedsim.interruption import Interrupted, Interruption, exit_code


def kill(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # the handler runs between two instructions


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_work(signum, code):
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught, Interruption():
        kill(signum)
    assert exit_code(caught.value) == code
    assert signal.getsignal(signum) is before
    assert exit_code(KeyboardInterrupt()) == 130


def test_deferred_work_is_done_first():
    done = []

    def work():
        with Interruption() as interruption, interruption.deferred():
            with interruption.deferred():
                kill()
            done.append("all of it")

    with pytest.raises(Interrupted):
        work()
    assert done == ["all of it"]


def test_the_same_signal_twice_at_once_counts_once():
    def work():
        with Interruption() as interruption, interruption.deferred():
            kill()
            kill()

    with pytest.raises(Interrupted):
        work()


def test_entering_twice_shares_the_first():
    with Interruption() as outer, Interruption() as inner:
        assert inner is outer


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption():
            kill()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from fedsim.interruption import Interruption
with Interruption() as interruption, interruption.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=20, check=False)
    assert done.returncode == 143
