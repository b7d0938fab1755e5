"""The reading end of logs: the newest events of a run, and each viewer's position in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..events import Event, encode
from ..stores.base import Store

#: How many of the newest events a tail keeps in memory, at least; it keeps at most twice as many.
#: They are enough for a viewer that was briefly disconnected. The rest is in the store.
KEPT = 1024
#: Events that are read from the store at a time.
PAGE = 1024

#: The end that readers of a removed log get.
REMOVED = Event(0, "end", encode({"status": "cancelled", "finish_reason": None, "error": None}))


class ReadBatch:
    """Consecutive events, shared by all readers at the same position.

    `frames` caches the events as each dialect renders them. Two thousand viewers of one run cost
    one rendering.
    """

    __slots__ = ("after", "ended", "events", "frames")

    def __init__(self, after: int, events: list[Event]) -> None:
        self.after = after
        self.events = events
        self.ended = events[-1].type == "end"
        self.frames: dict[str, Any] = {}

    @property
    def last(self) -> int:
        return self.events[-1].seq


class LogTail:
    """The newest stored events of one run's log.

    `start` is the seq before the oldest event in memory, `last` that of the newest. `written_here`
    is whether this process writes the log.
    """

    __slots__ = (
        "_batch",
        "_lock",
        "_readers",
        "events",
        "failure",
        "last",
        "start",
        "written_here",
    )

    def __init__(self, start: int, written_here: bool) -> None:
        self.start = self.last = start
        self.written_here = written_here
        self.events: list[Event] = []
        # An `end` that is not in the log. Only the current readers get it.
        self.failure: Event | None = None
        self._readers: dict[LogReader, None] = {}
        self._batch: ReadBatch | None = None
        self._lock = threading.Lock()

    def extend(self, events: Sequence[Event]) -> None:
        """Add stored events, except those that are already here, and wake the readers."""
        with self._lock:
            new = events
            if events and events[0].seq <= self.last:
                new = [event for event in events if event.seq > self.last]
            if not new:
                return
            # After a run was taken over from a dead worker there may be a gap. Then the tail starts
            # again from the new events, and the events before them are in the store.
            follows = bool(self.events) and new[0].seq == self.last + 1
            if follows and len(self.events) + len(new) <= 2 * KEPT:
                # In place: copying the list for every token would dominate the cost.
                self.events.extend(new)
            else:
                kept = [*self.events, *new][-KEPT:] if follows else list(new[-KEPT:])
                # Set `start` first, so that a reader in another thread that is now behind it reads
                # the store. Make a new list, since that reader may be slicing the old one.
                self.start = kept[0].seq - 1
                self.events = kept
            self.last = new[-1].seq
        self.wake()

    def fail(self, end: Event) -> None:
        """Give the current readers an `end` that is not in the log."""
        self.failure = end
        self.wake()

    def since(self, after: int) -> ReadBatch | None:
        """Return all events after a seq, or None. The seq must not be before `start`."""
        batch, events = self._batch, self.events
        if not events or events[-1].seq <= after:
            return None
        if batch is None or batch.after != after or batch.last != events[-1].seq:
            # An index from the start, because events may be added at the end meanwhile.
            index = after + 1 - events[0].seq
            if index < 0:
                return None  # the tail has just started again, which wakes the reader once more
            batch = self._batch = ReadBatch(after, events[index:])
        return batch

    def wake(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    @property
    def readers(self) -> int:
        """The number of readers."""
        return len(self._readers)

    def add(self, reader: LogReader) -> None:
        self._readers[reader] = None

    def remove(self, reader: LogReader) -> None:
        self._readers.pop(reader, None)


class LogReader:
    """One viewer's position in one run's log: take new events, then wait until woken.

    `after` is the position: the seq of the last event that was taken.
    """

    __slots__ = ("_close", "_signal", "_store", "after", "run", "tail")

    def __init__(
        self, store: Store, run: str, tail: LogTail, after: int, close: Callable[[LogReader], None]
    ) -> None:
        self.run = run
        self.after = after
        self._store = store
        self.tail = tail
        self._close = close
        # Used as a binary semaphore: `wake` releases it, `wait` acquires it.
        self._signal = threading.Lock()
        self._signal.acquire()

    def take(self) -> ReadBatch | None:
        """Return the events after the position and move past them, or return None.

        Raises StoreError.
        """
        tail = self.tail
        if self.after < tail.start:
            events = self._store.read(self.run, self.after, PAGE)
            batch = ReadBatch(self.after, events) if events else None
            if batch is None and tail.failure is None:
                tail.failure = REMOVED  # the events have disappeared with their conversation
        else:
            batch = tail.since(self.after)
        if batch is None:
            if tail.failure is None:
                return None
            return ReadBatch(self.after, [tail.failure])
        self.after = batch.last
        return batch

    def wait(self, timeout: float = -1) -> None:
        """Sleep until `wake` is called, which new events do, or `timeout` seconds have passed."""
        self._signal.acquire(timeout=timeout)

    def wake(self) -> None:
        if self._signal.locked():
            with suppress(RuntimeError):  # another thread has just released it
                self._signal.release()

    def close(self) -> None:
        """Stop following the log. It may be called again."""
        self._close(self)
