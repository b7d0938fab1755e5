"""Fair turns for work that never waits by itself."""

from __future__ import annotations

import threading
import time
from collections import deque

from .greenlets import uses_greenlets

_queue: deque[threading.Lock] = deque()


def yield_control() -> None:
    """Let other greenlets and threads run, then return.

    Call it in work that never waits by itself. `time.sleep(0)` is not enough under gevent: it
    resumes all callers before it looks at sockets again. Here the callers form a queue, and each
    one resumes after a whole turn of the loop.
    """
    if not uses_greenlets():
        time.sleep(1e-6)  # the operating system switches threads by itself
        return
    turn = threading.Lock()
    turn.acquire()
    _queue.append(turn)
    try:
        if _queue[0] is not turn:
            turn.acquire()
        time.sleep(1e-6)
    finally:
        first = _queue[0] is turn
        _queue.remove(turn)
        if first and _queue:
            _queue[0].release()
