"""The writing end of logs: what one run says, on its way to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from ..events import Event, NewEvent
from ..stores.base import RUNNING, Batch, Run
from .log_reader import LogTail

#: Events that may wait for the store before the run that makes them has to wait, too.
PENDING = 8192


class WriteFailure(Enum):
    """Why a run cannot go on, as seen from its log."""

    UNREACHABLE = "the store does not answer"
    LOST = "another owner holds the run"


class LogWriter:
    """The writing end of one run's log. Any of the run's threads may write, and close it.

    `committed` is the seq up to which the log is stored.
    """

    __slots__ = (
        "_batch",
        "_commit",
        "_done",
        "_end",
        "_lock",
        "_on_trouble",
        "_pending",
        "_queued",
        "committed",
        "owner",
        "run",
        "settled",
        "tail",
        "tries",
        "trouble",
    )

    def __init__(
        self,
        run: Run,
        owner: str,
        tail: LogTail,
        commit: Callable[[LogWriter], None],
        on_trouble: Callable[[WriteFailure], None],
    ) -> None:
        self.run = run.id
        self.owner = owner
        self.tail = tail
        self.committed = run.seq
        self.trouble: WriteFailure | None = None
        #: How often it was given up that its words are stored.
        self.tries = 0
        #: Set when the `end` is stored, or has been shown because it cannot be.
        self.settled = threading.Event()
        self._commit = commit
        self._on_trouble = on_trouble
        # What was said has no seq yet: it gets one when it is taken to the store. So `append`,
        # which runs once per token, needs no lock: a list takes care of itself.
        self._pending: list[NewEvent] = []
        self._queued = False
        self._batch: Batch | None = None
        self._end: tuple[str, str] | None = None
        self._done = False
        self._lock = threading.Lock()

    def append(self, said: NewEvent) -> None:
        """Say something. It is shown as soon as it is stored; nothing is said after `close`."""
        if self._end is None:
            self._pending.append(said)
            if not self._queued:
                self._queued = True
                self._commit(self)

    def close(self, status: str, data: str) -> bool:
        """Say `end`, the last word, once; whether this call was the one that said it."""
        with self._lock:
            if self._end is not None:
                return False
            self._end = status, data
        self._commit(self)
        if self.trouble is WriteFailure.UNREACHABLE:
            self.tell(data)
        return True

    def tell(self, data: str) -> None:
        """Show those who read here an `end` that is not stored, and so has no place in the log.

        Who waits for the store to come back would wait for nothing.
        """
        self.tail.fail(Event(0, "end", data))
        self.settled.set()

    @property
    def closed(self) -> bool:
        """Whether the last word has been said."""
        return self._end is not None

    @property
    def full(self) -> bool:
        """Whether so much waits for the store that the run should wait, too."""
        return len(self._pending) > PENDING

    def batch(self) -> Batch | None:
        """What is to be stored next; None if that is nothing.

        The same batch, to the letter, until `stored` is told of it: a try that failed may have
        been a success whose answer was lost, and only the same again is harmless.
        """
        if self._batch is not None:
            return self._batch
        # Cleared before the look, so that what comes after the look queues anew.
        self._queued = False
        end = self._end
        count = len(self._pending)
        said = self._pending[:count]
        del self._pending[:count]
        events = [Event(seq, *what) for seq, what in enumerate(said, self.committed + 1)]
        if end is not None:
            events.append(Event(self.committed + count + 1, "end", end[1]))
        if events and not self._done:
            status = None if end is None else end[0]
            self._batch = Batch(self.run, self.owner, self.committed, events, status)
        return self._batch

    def stored(self, batch: Batch) -> None:
        """The batch is stored: show it."""
        self._batch = None
        self.committed = batch.events[-1].seq
        self.tail.extend(batch.events)
        if batch.status is not None:
            # What a chain on a plain thread still says after it was given up is not said.
            self._done = True
            self.settled.set()
        elif self._pending or self._end is not None:
            self._commit(self)

    def fail(self) -> None:
        """The store does not answer: the run must end. What waits to be stored goes on waiting."""
        if self.trouble is None:
            self.trouble = WriteFailure.UNREACHABLE
            self._on_trouble(WriteFailure.UNREACHABLE)

    def lose(self) -> None:
        """The store says that this owner no longer holds the run: nothing more is written."""
        first = self.trouble is not WriteFailure.LOST
        self.trouble = WriteFailure.LOST
        with self._lock:
            self._end = self._end or (RUNNING, "")
        self._done = True
        self._batch = None
        self._pending.clear()
        self.settled.set()
        if first:
            self._on_trouble(WriteFailure.LOST)
