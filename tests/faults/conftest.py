"""No case may hang."""

import signal

import pytest

LIMIT_S = 300  # far more than any case takes, even on a busy machine


@pytest.fixture(autouse=True)
def _alarm():
    def ring(*_):
        raise TimeoutError(f"a case of the fault catalogue took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
