"""Work in the background that can be ended from outside: the one module that names gevent.

Everything else uses `threading`, which gunicorn's gevent worker turns into greenlets. What
`threading` cannot say is "stop, wherever you are": a thread that waits for a socket cannot be
interrupted, a greenlet can.

What a task does it may have done by others: LangChain and LangGraph run parallel branches on
executors, in a copy of the caller's context. So a task is known by a context variable, and
whoever goes on in its context is interrupted with it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

from gevent import monkey

from ..events import NewEvent

logger = logging.getLogger(__name__)

#: Seconds between two looks for those who go on in an interrupted task's context: the first
#: pause, and the longest.
LOOK, LONGEST_LOOK = 0.005, 1.0
#: Seconds that somebody who was interrupted has for leaving before it is interrupted again.
LEAVE = 2.0


class Interrupted(BaseException):
    """Raised inside a task that was interrupted. Not an `Exception`: no chain may swallow it."""


class Task(Protocol):
    """A function that runs in the background."""

    def interrupt(self) -> bool:
        """Raise `Interrupted` wherever the task is waiting; False if this cannot be done."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for the task to end; whether it has."""


class TaskScope:
    """What goes on for one task, in all its greenlets and threads.

    `tell` is where each of them may say something while the task itself waits for them.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.tell: Callable[[NewEvent], None] | None = None
        self.noticed = -LEAVE

    def notice(self) -> None:
        """The task leaves by itself: it is not interrupted before it has had time for that."""
        self.noticed = time.monotonic()

    def check(self) -> None:
        """Raise `Interrupted` if the task was: for places where something new would begin."""
        if self.interrupted:
            raise Interrupted


_scope: ContextVar[TaskScope | None] = ContextVar("scope", default=None)
_NOBODYS = TaskScope()
_shielded: ContextVar[bool] = ContextVar("shielded", default=False)


def scope() -> TaskScope:
    """That of the task for which this is done; outside of any task, one that has no end."""
    return _scope.get() or TaskScope()


def pause(seconds: float) -> None:
    """Wait so long. Raises `Interrupted` as soon as the task is, on a plain thread as well."""
    here, until = scope(), time.monotonic() + seconds
    while not here.interrupted and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
    here.check()


@contextmanager
def shield() -> Iterator[None]:
    """Not to be interrupted within, but after it: for what must not be left half done."""
    token = _shielded.set(True)
    try:
        yield
    finally:
        _shielded.reset(token)


class _ThreadTask:
    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._scope = TaskScope()
        self._target = target
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _scope.set(self._scope)
        self._target()

    def interrupt(self) -> bool:
        self._scope.interrupted = True
        return False

    def join(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()


class _GreenletTask:
    def __init__(self, target: Callable[[], None], name: str) -> None:
        import gevent

        self._begun = False
        self._scope = TaskScope()
        self._told: dict[Any, float] = {}
        self._target = target
        self._greenlet: Any = gevent.Greenlet(self._run)
        self._greenlet.name = name
        self._greenlet.start()

    def _run(self) -> None:
        self._begun = True
        _scope.set(self._scope)
        self._target()

    def interrupt(self) -> bool:
        # A greenlet that is killed before its first step never runs at all, and could not even
        # say that it was stopped: it finds out by itself instead.
        if self._begun and not self._scope.interrupted:
            import gevent

            # A moment later: it may be about to notice by itself.
            gevent.spawn(gevent.get_hub().loop.run_callback, _tell, [self._greenlet], [self])
            _leaving[self] = time.monotonic()
            _bell().set()
            if len(_leaving) == 1:
                gevent.spawn(_see_off)
        self._scope.interrupted = True
        return True

    def join(self, timeout: float | None = None) -> bool:
        self._greenlet.join(timeout)
        return bool(self._greenlet.ready())


#: Tasks that were interrupted and have not left, and since when.
_leaving: dict[_GreenletTask, float] = {}


@cache
def _bell() -> Any:
    from gevent.event import Event

    return Event()


def _see_off() -> None:
    """Interrupt those whom interrupted tasks wait for while they leave, until all have left.

    One look for all of them, since it goes through every object there is, and takes a tenth of
    all time at most.
    """
    import gevent

    pause = rest = LOOK
    while _leaving:
        gevent.sleep(rest)
        _bell().wait(pause - rest)
        _bell().clear()
        for task in [task for task in _leaving if task._greenlet.ready()]:
            del _leaving[task]
        if _leaving:
            began = time.monotonic()
            # Nobody else knows those of executors. Not isinstance: it would load lazy objects.
            found = [one for one in gc.get_objects() if issubclass(type(one), gevent.Greenlet)]
            gevent.get_hub().loop.run_callback(_tell, found, list(_leaving))
            rest = max(LOOK, 10 * (time.monotonic() - began))
            # As long again as the last to come has been leaving.
            pause = max(rest, min(began - max(_leaving.values()), LONGEST_LOOK))


def _tell(greenlets: Iterable[Any], tasks: Iterable[_GreenletTask]) -> None:
    # In the hub, so nobody moves between the look and the throw. A worker of an executor has
    # the task's context only as long as it works for the task.
    now, scopes = time.monotonic(), {task._scope: task._told for task in tasks}
    for task in tasks:
        task._told.setdefault(task._greenlet, task._scope.noticed)
    for one in greenlets:
        with suppress(ValueError):  # it runs in a thread of its own
            context = one.gr_context or {}
            told = scopes.get(context.get(_scope) or _NOBODYS)
            if one.dead or told is None or context.get(_shielded):
                continue
            if now - told.get(one, -LEAVE) >= LEAVE:
                told[one] = now
                one.throw(Interrupted)


def start_task(target: Callable[[], None], name: str) -> Task:
    """Run `target` in the background: as a greenlet where `threading` is patched, else a thread.

    `target` handles its own exceptions; `Interrupted` ends it quietly. A task that is
    interrupted before its first step still takes it: `target` looks for that itself.
    """

    def run() -> None:
        try:
            target()
        except Interrupted:
            return

    if uses_greenlets():
        return _GreenletTask(run, name)
    return _ThreadTask(run, name)


def uses_greenlets() -> bool:
    """Whether what `threading` has are greenlets."""
    return bool(monkey.is_module_patched("threading"))
