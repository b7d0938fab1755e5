"""The writing end of logs: what one run says, on its way to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from .events import Event
from .stores.base import RUNNING, Batch, Run
from .tail import Tail

#: Events that may wait for the store before the run that makes them has to wait, too.
PENDING = 8192


class Trouble(Enum):
    """Why a run cannot go on, as seen from its log."""

    UNREACHABLE = "the store does not answer"
    LOST = "another owner holds the run"


class Log:
    """The writing end of one run's log. One task writes; `close` may come from any.

    `committed` is the seq up to which the log is stored.
    """

    __slots__ = (
        "_closed",
        "_commit",
        "_lock",
        "_on_trouble",
        "_pending",
        "_queued",
        "_seq",
        "committed",
        "owner",
        "run",
        "settled",
        "tail",
        "trouble",
    )

    def __init__(
        self,
        run: Run,
        owner: str,
        tail: Tail,
        commit: Callable[[Log], None],
        on_trouble: Callable[[Trouble], None],
    ) -> None:
        self.run = run.id
        self.owner = owner
        self.tail = tail
        self.committed = self._seq = run.seq
        self.trouble: Trouble | None = None
        #: Set when the `end` is stored, or has been shown because it cannot be.
        self.settled = threading.Event()
        self._commit = commit
        self._on_trouble = on_trouble
        self._closed: str | None = None
        self._lock = threading.Lock()
        self._pending: list[Event] = []
        self._queued = False

    def append(self, type: str, data: str) -> None:
        """Say something. It is shown as soon as it is stored; nothing is said after `close`."""
        with self._lock:
            if self._closed is not None:
                return
            self._seq += 1
            self._pending.append(Event(self._seq, type, data))
        if not self._queued:
            self._queued = True
            self._commit(self)

    def close(self, status: str, data: str) -> bool:
        """Say `end`, the last word, once; whether this call was the one that said it."""
        with self._lock:
            if self._closed is not None:
                return False
            self._closed = status
            self._seq += 1
            self._pending.append(Event(self._seq, "end", data))
            self._queued = True
        self._commit(self)
        if self.trouble is Trouble.UNREACHABLE:
            # Shown although it is not stored, and so without a place in the log: a viewer who
            # waits for the store to come back would wait for nothing.
            self.tail.fail(Event(0, "end", data))
            self.settled.set()
        return True

    @property
    def closed(self) -> bool:
        """Whether the last word has been said."""
        return self._closed is not None

    @property
    def full(self) -> bool:
        """Whether so much waits for the store that the run should wait, too."""
        return len(self._pending) > PENDING

    def batch(self) -> Batch | None:
        """What waits to be stored. It stays pending until `stored` says otherwise."""
        # Cleared before the look, so that an event that comes after the look queues anew.
        self._queued = False
        with self._lock:
            events = self._pending[:]
            if not events or self.trouble is Trouble.LOST:
                return None
            status = self._closed if events[-1].type == "end" else None
        return Batch(self.run, self.owner, self.committed, events, status)

    def stored(self, batch: Batch) -> None:
        with self._lock:
            del self._pending[: len(batch.events)]
        self.committed = batch.events[-1].seq
        self.tail.extend(batch.events)
        if batch.status is not None:
            self.settled.set()

    def fail(self) -> None:
        """The store does not answer: the run must end. What waits to be stored goes on waiting."""
        if self.trouble is None:
            self.trouble = Trouble.UNREACHABLE
            self._on_trouble(Trouble.UNREACHABLE)

    def lose(self) -> None:
        """The store says that this owner no longer holds the run: nothing more is written."""
        first = self.trouble is not Trouble.LOST
        self.trouble = Trouble.LOST
        with self._lock:
            self._closed = self._closed or RUNNING
            self._pending.clear()
        self.settled.set()
        if first:
            self._on_trouble(Trouble.LOST)
