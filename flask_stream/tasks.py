"""Work in the background that can be ended from outside: the one module that names gevent.

Everything else uses `threading`, which gunicorn's gevent worker turns into greenlets. What
`threading` cannot say is "stop, wherever you are": a thread that waits for a socket cannot be
interrupted, a greenlet can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from gevent import monkey


class Interrupted(BaseException):
    """Raised inside a task that was interrupted. Not an `Exception`: no chain may swallow it."""


class Task(Protocol):
    """A function that runs in the background."""

    def interrupt(self) -> bool:
        """Raise `Interrupted` wherever the task is waiting; False if this cannot be done."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for the task to end; whether it has."""


class _ThreadTask:
    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=target, name=name, daemon=True)
        self._thread.start()

    def interrupt(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()


class _GreenletTask:
    def __init__(self, target: Callable[[], None], name: str) -> None:
        import gevent

        self._begun = False
        self._target = target
        self._greenlet: Any = gevent.Greenlet(self._run)
        self._greenlet.name = name
        self._greenlet.start()

    def _run(self) -> None:
        self._begun = True
        self._target()

    def interrupt(self) -> bool:
        # A greenlet that is killed before its first step never runs at all, and so could not
        # even say that it was stopped: it finds out by itself instead.
        if self._begun:
            self._greenlet.kill(Interrupted, block=False)
        return True

    def join(self, timeout: float | None = None) -> bool:
        self._greenlet.join(timeout)
        return bool(self._greenlet.ready())


def start(target: Callable[[], None], name: str) -> Task:
    """Run `target` in the background: as a greenlet where `threading` is patched, else a thread.

    `target` handles its own exceptions; `Interrupted` ends it quietly. A task that is
    interrupted before its first step still takes it: `target` looks for that itself.
    """

    def run() -> None:
        try:
            target()
        except Interrupted:
            return

    if monkey.is_module_patched("threading"):
        return _GreenletTask(run, name)
    return _ThreadTask(run, name)


class Every:
    """Calls `target` every so many seconds until it is stopped. `target` raises nothing."""

    def __init__(self, seconds: float, target: Callable[[], None], name: str) -> None:
        self._seconds = seconds
        self._target = target
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._target()

    def stop(self) -> None:
        """Call `target` no more; a call under way is waited for."""
        self._stopped.set()
        self._thread.join()
