"""The writing end of logs: collects the events of one run for the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

from ..events import Event, NewEvent
from ..stores.base import RUNNING, Batch, Run
from .answer import AnswerFold
from .log_reader import LogTail

#: The most events that may wait for the store before their run must wait, too.
PENDING = 8192

# Twice as fast as calling the class, and used for every token.
_new = tuple.__new__


class WriteFailure(Enum):
    """Why a log can no longer be written."""

    UNREACHABLE = "the store does not answer"
    LOST = "another worker holds the run"


class LogWriter:
    """The writing end of one run's log. Any of the run's threads may append to it and close it.

    `committed` is the seq of the last stored event. `settled` is set when the `end` is stored, or
    when readers got an `end` that cannot be stored. `failed_commits` counts how often the journal
    gave up storing a batch.
    """

    __slots__ = (
        "_answer",
        "_batch",
        "_commit",
        "_created",
        "_done",
        "_end",
        "_first_chunk_recorded",
        "_lock",
        "_on_failure",
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
        # Pending events get their seq in `batch`. So `append`, which runs once per token, needs no
        # lock: adding to a list is atomic.
        self._pending: list[NewEvent] = []
        self._times: list[float] = []
        # The monotonic time at which the run was created. Workers' clocks may differ a little.
        self._created = time.monotonic() - max(0.0, time.time() - run.created)
        self._started: int | None = None
        self._start_recorded = run.started is not None
        self._first_chunk_recorded = run.first_chunk is not None
        # This process does not know the events that another worker has written.
        self._answer = AnswerFold(complete=run.seq == 0)
        self._queued = False
        self._batch: Batch | None = None
        self._end: tuple[str, str, int] | None = None
        self._done = False
        self._lock = threading.Lock()

    def append(self, event: NewEvent, now: float) -> None:
        """Add an event that was produced at the monotonic time `now`.

        Readers see it when it is stored. After `close`, it is dropped.
        """
        if self._end is None:
            self._pending.append(event)
            self._times.append(now)  # last, since `batch` takes only events that have a time
            if not self._queued:
                self._queued = True
                self._commit(self)

    def mark_started(self, now: float) -> None:
        """Record the first call of the chain. It is stored with the next event."""
        if not self._start_recorded:
            self._start_recorded = True
            self._started = self._ms(now)

    def close(self, status: str, data: str) -> bool:
        """Add the `end` unless there is one; return whether this call added it."""
        with self._lock:
            if self._end is not None:
                return False
            self._end = status, data, self._ms(time.monotonic())
        self._commit(self)
        if self.failure is WriteFailure.UNREACHABLE:
            self.show_end(data)
        return True

    def show_end(self, data: str) -> None:
        """Give the readers in this process an `end` without a seq, because it cannot be stored."""
        self.tail.fail(Event(0, "end", data, self._ms(time.monotonic())))
        self.settled.set()

    @property
    def closed(self) -> bool:
        """Whether the `end` was added, or the lease was lost."""
        return self._end is not None

    @property
    def full(self) -> bool:
        """Whether so many events wait for the store that the run must wait, too."""
        return len(self._pending) > PENDING

    def batch(self) -> Batch | None:
        """Return the next batch to store, or None.

        It is the same batch until `stored` is called. An attempt that failed may have been stored
        nevertheless, and repeating the same batch is safe.
        """
        if self._batch is not None:
            return self._batch
        # Before reading the list, so that events added after that queue the writer again.
        self._queued = False
        end = self._end
        count = len(self._times)
        pending, times = self._pending[:count], self._times[:count]
        del self._pending[:count], self._times[:count]
        created, first = self._created, self.committed + 1
        events = [
            _new(Event, (seq, type, data, int((now - created) * 1000)))
            for seq, ((type, data), now) in enumerate(zip(pending, times, strict=False), first)
        ]
        self._answer.add(events)
        if end is not None:
            events.append(Event(self.committed + count + 1, "end", end[1], end[2]))
        if events and not self._done:
            status = None if end is None else end[0]
            self._batch = Batch(
                *(self.run, self.lease_token, self.committed, events, status, self._started),
                None if self._first_chunk_recorded else self._find_first_chunk(events),
                None if end is None else self._answer.json(),
            )
            self._started = None
        return self._batch

    def _find_first_chunk(self, events: list[Event]) -> int | None:
        for event in events:
            if event.type == "chunk":
                self._first_chunk_recorded = True
                return event.at
        return None

    def _ms(self, now: float) -> int:
        return int((now - self._created) * 1000)

    def stored(self, batch: Batch) -> None:
        """Show readers a batch that was stored."""
        self._batch = None
        self.committed = batch.events[-1].seq
        self.tail.extend(batch.events)
        if batch.status is not None:
            # An abandoned chain on a plain thread may still add events. They are dropped.
            self._done = True
            self.settled.set()
        elif self._pending or self._end is not None:
            self._commit(self)

    def fail(self) -> None:
        """End the run because the store does not answer. Its events still wait to be stored."""
        if self.failure is None:
            self.failure = WriteFailure.UNREACHABLE
            self._on_failure(WriteFailure.UNREACHABLE)

    def lose_lease(self) -> None:
        """Write no more, because another worker holds the run or the run was removed."""
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
