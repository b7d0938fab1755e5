"""Background tasks that can be interrupted from outside.

A thread that waits for a socket cannot be interrupted, a greenlet can. So a task is a greenlet
where `threading` is patched by gevent, and a plain thread elsewhere, which notices an interrupt
when it next calls `TaskScope.check`.

LangChain and LangGraph run parallel branches on executors, in a copy of the caller's context.
A context variable marks that context, and an interrupt reaches every greenlet that works in it,
wherever and whenever that greenlet was started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

from ..events import NewEvent
from . import greenlets
from .greenlets import uses_greenlets

#: Seconds between two searches for greenlets that still work for an interrupted task: the first
#: pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
#: Seconds that an interrupted greenlet has to finish before it is interrupted again.
LEAVE = 2.0


class Interrupted(BaseException):
    """Raised inside a task that was interrupted. Not an `Exception`: no chain may swallow it."""


class Task(Protocol):
    """A function that runs in the background."""

    def interrupt(self) -> bool:
        """Raise `Interrupted` wherever the task is waiting; return False if this is impossible."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for the task to end; return whether it has."""


class TaskScope:
    """What belongs to one task, in all its greenlets and threads.

    `emit` is a function with which each of them can add an event while the task itself waits for
    them.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.emit: Callable[[NewEvent], None] | None = None
        self.noticed = -LEAVE

    def notice(self) -> None:
        """Record that the task has noticed the interrupt, so it gets time to end by itself."""
        self.noticed = time.monotonic()

    def check(self) -> None:
        """Raise `Interrupted` if the task was interrupted. Call it before new work begins."""
        if self.interrupted:
            raise Interrupted


_scope: ContextVar[TaskScope | None] = ContextVar("scope", default=None)
_shielded: ContextVar[bool] = ContextVar("shielded", default=False)


def scope() -> TaskScope:
    """Return the scope of the current task; outside of any task, one that is never interrupted."""
    return _scope.get() or TaskScope()


def pause(seconds: float) -> None:
    """Sleep. Raises `Interrupted` as soon as the task is interrupted, also on a plain thread."""
    current, until = scope(), time.monotonic() + seconds
    while not current.interrupted and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
    current.check()


@contextmanager
def shield() -> Iterator[None]:
    """Delay an interrupt until the block has ended, for work that must not be left half done."""
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
        greenlets.track()
        self.scope = TaskScope()
        #: When each greenlet that works for this task was interrupted.
        self.interrupted_at: dict[Any, float] = {}
        #: Whether the latest search found a greenlet that works for this task.
        self.at_work = True
        self._begun = False
        self._target = target
        self.greenlet: Any = greenlets.start(self._run, name)

    def _run(self) -> None:
        self._begun = True
        _scope.set(self.scope)
        self._target()

    def interrupt(self) -> bool:
        # A greenlet that is killed before its first step never runs at all, and could not even
        # record that it was stopped. It checks for itself instead.
        if self._begun and not self.scope.interrupted:
            # Not at once: it may be about to notice by itself.
            greenlets.start(
                lambda: greenlets.call_in_hub(_throw, [self.greenlet], [self]), "interrupt"
            )
            _ending[self] = time.monotonic()
            _more_ending().set()
            if len(_ending) == 1:
                greenlets.start(_interrupt_branches, "interrupt branches")
        self.scope.interrupted = True
        return True

    def join(self, timeout: float | None = None) -> bool:
        self.greenlet.join(timeout)
        return self.ended

    @property
    def ended(self) -> bool:
        return bool(self.greenlet.ready())


#: Tasks that were interrupted and for which somebody still works, and when each was interrupted.
_ending: dict[_GreenletTask, float] = {}


@cache
def _more_ending() -> threading.Event:
    return threading.Event()  # not made on import, which may come before gevent's patching


def _interrupt_branches() -> None:
    """Interrupt the greenlets that work for interrupted tasks, until none is left.

    One search serves all tasks. It looks at every greenlet, since a worker of an executor may be
    older than the task that it works for, and takes at most a tenth of the time.
    """
    pause = rest = FIRST_PAUSE
    while _ending:
        time.sleep(rest)
        _more_ending().wait(pause - rest)
        _more_ending().clear()
        for task in [task for task in _ending if task.ended and not task.at_work]:
            del _ending[task]
        if _ending:
            began = time.monotonic()
            found = greenlets.tracked()
            greenlets.call_in_hub(_throw, found, list(_ending))
            rest = max(FIRST_PAUSE, 10 * (time.monotonic() - began))
            # As long again as the latest of these tasks has already taken.
            pause = max(rest, min(began - max(_ending.values()), LONGEST_PAUSE))


def _throw(found: Iterable[Any], tasks: Iterable[_GreenletTask]) -> None:
    """Raise `Interrupted` in those greenlets that work for one of the tasks.

    Runs in the hub, so no greenlet moves between the look at its context and the throw. A worker
    of an executor has the task's context only as long as it works for the task.
    """
    now = time.monotonic()
    by_scope: dict[TaskScope | None, _GreenletTask] = {task.scope: task for task in tasks}
    for task in by_scope.values():
        task.interrupted_at.setdefault(task.greenlet, task.scope.noticed)
        task.at_work = not task.ended
    for greenlet in found:
        context = greenlets.context_of(greenlet)
        if not context:  # most greenlets have none
            continue
        working_for = by_scope.get(context.get(_scope))
        if working_for is None or greenlet.dead:
            continue
        working_for.at_work = True
        last = working_for.interrupted_at.get(greenlet, -LEAVE)
        if now - last >= LEAVE and not context.get(_shielded):
            working_for.interrupted_at[greenlet] = now
            greenlet.throw(Interrupted)


def start_task(target: Callable[[], None], name: str) -> Task:
    """Run `target` in the background: as a greenlet where `threading` is patched, else a thread.

    `target` handles its own exceptions; `Interrupted` ends it quietly. A task that is interrupted
    before its first step still takes that step: `target` has to check for it.
    """

    def run() -> None:
        try:
            target()
        except Interrupted:
            return

    if uses_greenlets():
        return _GreenletTask(run, name)
    return _ThreadTask(run, name)


if uses_greenlets():
    # Executors that start their workers before the first task are found, too.
    greenlets.track()
