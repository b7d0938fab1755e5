"""What is done again and again as long as the process lives, and letting others have their turn."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from .tasks import patched

logger = logging.getLogger(__name__)


class Every:
    """Calls `target` every so many seconds until it is stopped, whatever it raises."""

    def __init__(self, seconds: float, target: Callable[[], None], name: str) -> None:
        self._seconds = seconds
        self._target = target
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._target()
            except Exception:  # a fault in one look must not be the last of all looks
                logger.exception("%s: failed, and goes on", self._thread.name)

    def stop(self) -> None:
        """Call `target` no more; a call under way is waited for."""
        self._stopped.set()
        self._thread.join()


_line: deque[threading.Lock] = deque()


def give_way() -> None:
    """Let everybody else do what they have to do, then go on.

    For work that never waits by itself. `time.sleep(0)` is not enough under gevent: those who
    slept for nothing are all resumed before sockets are looked at again. Here they stand in a
    line, and the first of it goes on after a whole round of the loop.
    """
    if not patched():
        time.sleep(1e-6)  # threads take turns by themselves
        return
    me = threading.Lock()
    me.acquire()
    _line.append(me)
    try:
        if _line[0] is not me:
            me.acquire()
        time.sleep(1e-6)
    finally:
        first = _line[0] is me
        _line.remove(me)
        if first and _line:
            _line[0].release()
