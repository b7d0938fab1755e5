"""The writing end of logs: the events of one run, on their way to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

from ..events import Event, NewEvent
from ..stores.base import RUNNING, Batch, Run
from .answer import AnswerFold
from .log_reader import LogTail

#: The largest number of events that wait for the store before their run has to wait, too.
PENDING = 8192

# Per token, this is twice as fast as calling the class.
_new = tuple.__new__


class WriteFailure(Enum):
    """Why a log can no longer be written."""

    UNREACHABLE = "the store does not answer"
    LOST = "another worker holds the run"


class LogWriter:
    """The writing end of one run's log. Any of the run's threads may append to it and close it.

    `committed` is the seq up to which the log is stored. `settled` is set when the `end` is stored,
    or was shown because it cannot be stored. `failed_commits` counts how often the journal gave up
    storing a batch.
    """

    __slots__ = (
        "_answer",
        "_batch",
        "_commit",
        "_done",
        "_end",
        "_first_chunk",
        "_lock",
        "_on_failure",
        "_origin",
        "_pending",
        "_queued",
        "_start_recorded",
        "_started",
        "_times",
        "committed",
        "failed_commits",
        "failure",
        "lease_token",
        "run",
        "settled",
        "tail",
    )

    def __init__(
        self,
        run: Run,
        lease_token: str,
        tail: LogTail,
        commit: Callable[[LogWriter], None],
        on_failure: Callable[[WriteFailure], None],
    ) -> None:
        self.run = run.id
        self.lease_token = lease_token
        self.tail = tail
        self.committed = run.seq
        self.failure: WriteFailure | None = None
        self.failed_commits = 0
        self.settled = threading.Event()
        self._commit = commit
        self._on_failure = on_failure
        # Pending events have no seq yet: they get one when they are taken to the store. So
        # `append`, which runs once per token, needs no lock: lists are safe by themselves.
        self._pending: list[NewEvent] = []
        self._times: list[float] = []
        # When the run was created, on the monotonic clock. Workers' clocks may differ a little.
        self._origin = time.monotonic() - max(0.0, time.time() - run.created)
        self._started: int | None = None
        self._start_recorded = run.started is not None
        self._first_chunk = run.first_chunk is not None
        # What another worker has written is not known here.
        self._answer = AnswerFold(complete=run.seq == 0)
        self._queued = False
        self._batch: Batch | None = None
        self._end: tuple[str, str, int] | None = None
        self._done = False
        self._lock = threading.Lock()

    def append(self, event: NewEvent, now: float) -> None:
        """Add an event of the moment `now`, on the monotonic clock.

        Readers see it as soon as it is stored. Nothing is added after `close`.
        """
        if self._end is None:
            self._pending.append(event)
            self._times.append(now)  # last: only events with a time are taken to the store
            if not self._queued:
                self._queued = True
                self._commit(self)

    def mark_started(self, now: float) -> None:
        """Record that the chain was called, if it is the first time; stored with the next event."""
        if not self._start_recorded:
            self._start_recorded = True
            self._started = self._ms(now)

    def close(self, status: str, data: str) -> bool:
        """Add the `end`, once; return whether this call has added it."""
        with self._lock:
            if self._end is not None:
                return False
            self._end = status, data, self._ms(time.monotonic())
        self._commit(self)
        if self.failure is WriteFailure.UNREACHABLE:
            self.show_end(data)
        return True

    def show_end(self, data: str) -> None:
        """Show the readers in this process an `end` that cannot be stored, so it has no seq."""
        self.tail.fail(Event(0, "end", data, self._ms(time.monotonic())))
        self.settled.set()

    @property
    def closed(self) -> bool:
        """Whether the `end` was added, or the lease lost."""
        return self._end is not None

    @property
    def full(self) -> bool:
        """Whether so many events wait for the store that the run should wait, too."""
        return len(self._pending) > PENDING

    def batch(self) -> Batch | None:
        """Return what is to be stored next, or None.

        It is the same batch until `stored` is called: a try that failed may have been stored all
        the same, and then only the same batch does no harm.
        """
        if self._batch is not None:
            return self._batch
        # Cleared before the look, so that whatever comes after the look queues again.
        self._queued = False
        end = self._end
        count = len(self._times)
        pending, times = self._pending[:count], self._times[:count]
        del self._pending[:count], self._times[:count]
        origin, first = self._origin, self.committed + 1
        events = [
            _new(Event, (seq, type, data, int((now - origin) * 1000)))
            for seq, ((type, data), now) in enumerate(zip(pending, times, strict=False), first)
        ]
        self._answer.add(events)
        if end is not None:
            events.append(Event(self.committed + count + 1, "end", end[1], end[2]))
        if events and not self._done:
            status = None if end is None else end[0]
            self._batch = Batch(
                *(self.run, self.lease_token, self.committed, events, status, self._started),
                None if self._first_chunk else self._find_first_chunk(events),
                None if end is None else self._answer.json(),
            )
            self._started = None
        return self._batch

    def _find_first_chunk(self, events: list[Event]) -> int | None:
        for event in events:
            if event.type == "chunk":
                self._first_chunk = True
                return event.at
        return None

    def _ms(self, now: float) -> int:
        return int((now - self._origin) * 1000)

    def stored(self, batch: Batch) -> None:
        """Show the readers a batch that is stored."""
        self._batch = None
        self.committed = batch.events[-1].seq
        self.tail.extend(batch.events)
        if batch.status is not None:
            # A chain on a plain thread that was abandoned may still add events: they are dropped.
            self._done = True
            self.settled.set()
        elif self._pending or self._end is not None:
            self._commit(self)

    def fail(self) -> None:
        """The store does not answer: end the run. Its events still wait to be stored."""
        if self.failure is None:
            self.failure = WriteFailure.UNREACHABLE
            self._on_failure(WriteFailure.UNREACHABLE)

    def lose_lease(self) -> None:
        """Another worker holds the run, or it is gone: write nothing more."""
        first = self.failure is not WriteFailure.LOST
        self.failure = WriteFailure.LOST
        with self._lock:
            self._end = self._end or (RUNNING, "", 0)
        self._done = True
        self._batch = None
        self._pending.clear()
        self._times.clear()
        self.settled.set()
        if first:
            self._on_failure(WriteFailure.LOST)
