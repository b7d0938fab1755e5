"""Fair turns for work that never waits by itself."""

from __future__ import annotations

import threading
import time
from collections import deque

from .tasks import uses_greenlets

_line: deque[threading.Lock] = deque()


def yield_control() -> None:
    """Let everybody else do what they have to do, then go on.

    For work that never waits by itself. `time.sleep(0)` is not enough under gevent: those who
    slept for nothing are all resumed before sockets are looked at again. Here they stand in a
    line, and the first of it goes on after a whole round of the loop.
    """
    if not uses_greenlets():
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
