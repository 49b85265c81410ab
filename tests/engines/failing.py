"""A client that fails, named by ``_target_`` in a test's overrides."""

import os
import signal
import time
from pathlib import Path

from clients.sgd import SGD


class Failing(SGD):
    """Client 1 fails when it trains.

    Args:
        ways: What happens in each round: ``none``, ``raise``, ``hang``, or ``die`` once.
        mark: A file that says that it has died.
    """

    def __init__(self, setting, *, training, ways, mark=""):
        super().__init__(setting, training=training)
        self.ways = ways
        self.mark = Path(mark)

    def train(self, down, state):
        """See ``Client``."""
        way = self.ways[down.tick.round - 1] if down.client_id == 1 else "none"
        if way == "raise":
            raise ValueError("the client is out of order")
        if way == "hang":
            time.sleep(3600)
        if way == "die" and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(down, state)
