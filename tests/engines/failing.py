"""Clients that fail, named by ``_target_`` in the tests' overrides."""

import os
import signal
import time
from pathlib import Path

from clients.sgd import SGD


class Failing(SGD):
    """Client 1 raises, dies or hangs when it trains in round 2.

    Args:
        way: ``raise``, ``die`` (every time), ``die_once`` or ``hang``.
        mark: A file that a client leaves which has died once.
    """

    def __init__(self, setting, *, training, way, mark=""):
        super().__init__(setting, training=training)
        self.way = way
        self.mark = Path(mark)

    def train(self, down, state):
        """See ``Client``."""
        if down.client_id == 1 and down.tick.round == 2:
            self._fail()
        return super().train(down, state)

    def _fail(self):
        if self.way == "raise":
            raise ValueError("the client is out of order")
        if self.way == "hang":
            time.sleep(3600)
        if self.way == "die" or (self.way == "die_once" and not self.mark.exists()):
            self.mark.touch() if self.way == "die_once" else None
            os.kill(os.getpid(), signal.SIGKILL)
