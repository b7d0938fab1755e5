"""The reading end of logs: what this process knows of a run, and each viewer's place in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..events import Event, encode
from ..stores.base import Store

#: Events that a tail keeps in memory at least, if there are as many, and half of what it keeps at
#: most: enough for a viewer with a short interruption. The rest is in the store.
KEPT = 1024
#: Events read from the store at a time, and written to one viewer at a time.
PAGE = 1024

#: The end of a log that was removed: nobody will write one any more.
REMOVED = Event(0, "end", encode({"status": "cancelled", "finish_reason": None, "error": None}))


class ReadBatch:
    """Consecutive events, made once for all readers at the same place.

    `frames` keeps what dialects made of these events, so that two thousand viewers of one run
    cost one rendering.
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
    """The newest events of one run's log, as far as they are stored.

    `start` is the seq before the oldest event kept, `last` that of the newest.
    """

    __slots__ = ("_lock", "_readers", "_shared", "events", "failure", "last", "owned", "start")

    def __init__(self, start: int, owned: bool) -> None:
        self.start = self.last = start
        self.owned = owned
        self.events: list[Event] = []
        # An `end` that could not be stored: shown to those who are here, and to nobody later.
        self.failure: Event | None = None
        self._readers: dict[LogReader, None] = {}
        self._shared: ReadBatch | None = None
        self._lock = threading.Lock()

    def extend(self, events: Sequence[Event]) -> None:
        """Take events that are stored, leaving out those already here, and wake the readers."""
        with self._lock:
            new = events
            if events and events[0].seq <= self.last:
                new = [event for event in events if event.seq > self.last]
            if not new:
                return
            # A run that was taken over from a dead worker may be further than is known here: the
            # tail begins anew, and the store has what is between.
            follows = bool(self.events) and new[0].seq == self.last + 1
            if follows and len(self.events) + len(new) <= 2 * KEPT:
                # In place: copying all of them for each token would cost more than all the rest.
                self.events.extend(new)
            else:
                kept = [*self.events, *new][-KEPT:] if follows else list(new[-KEPT:])
                # The start goes first: a reader on another thread that is now behind it turns to
                # the store. That reader may be slicing the list, whose first events must stay.
                self.start = kept[0].seq - 1
                self.events = kept
            self.last = new[-1].seq
        self.wake()

    def fail(self, end: Event) -> None:
        """End the run for those who read it here, without an entry in the log."""
        self.failure = end
        self.wake()

    def since(self, after: int) -> ReadBatch | None:
        """All events after a seq that is not before `start`; None if there are none."""
        shared, events = self._shared, self.events
        if not events or events[-1].seq <= after:
            return None
        if shared is None or shared.after != after or shared.last != events[-1].seq:
            # Counted from the first: others may be added at the end meanwhile.
            index = after + 1 - events[0].seq
            if index < 0:
                return None  # it began anew just now: the reader has been woken, and looks again
            shared = self._shared = ReadBatch(after, events[index:])
        return shared

    def wake(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    @property
    def readers(self) -> int:
        """How many viewers read here."""
        return len(self._readers)

    def add(self, reader: LogReader) -> None:
        self._readers[reader] = None

    def remove(self, reader: LogReader) -> None:
        self._readers.pop(reader, None)


class LogReader:
    """One viewer's read of one run: take what there is, then wait until woken.

    `after` is the reader's place: the seq of the last event it took.
    """

    __slots__ = ("_close", "_store", "_wake", "after", "run", "tail")

    def __init__(
        self, store: Store, run: str, tail: LogTail, after: int, close: Callable[[LogReader], None]
    ) -> None:
        self.run = run
        self.after = after
        self._store = store
        self.tail = tail
        self._close = close
        # A semaphore that counts to one: released by whoever has something to tell.
        self._wake = threading.Lock()
        self._wake.acquire()

    def take(self) -> ReadBatch | None:
        """What is stored after this place, and move past it; None if that is nothing.

        Raises StoreError.
        """
        tail = self.tail
        if self.after < tail.start:
            events = self._store.read(self.run, self.after, PAGE)
            shared = ReadBatch(self.after, events) if events else None
            if shared is None and tail.failure is None:
                tail.failure = REMOVED  # there was more of it: its conversation is no longer kept
        else:
            shared = tail.since(self.after)
        if shared is None:
            if tail.failure is None:
                return None
            return ReadBatch(self.after, [tail.failure])
        self.after = shared.last
        return shared

    def wait(self, timeout: float = -1) -> None:
        """Sleep until there is news, or somebody calls `wake`, or `timeout` seconds are over."""
        self._wake.acquire(timeout=timeout)

    def wake(self) -> None:
        if self._wake.locked():
            with suppress(RuntimeError):  # another thread was quicker
                self._wake.release()

    def close(self) -> None:
        """Be woken no more. A closed reader may be closed again."""
        self._close(self)
