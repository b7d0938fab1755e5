"""The journal: what runs say is stored first and shown after, all runs in one round trip.

    run ──append──▶ Log ─┐
    run ──append──▶ Log ─┼─ committer ──▶ store ──▶ Tail ──▶ Reader, Reader, …
    run ──append──▶ Log ─┘   (one per process)

A `Log` is the writing end of one run, a `Tail` is what this process knows of one run's log, a
`Reader` is one viewer's place in it. Runs append to memory; the committer writes whatever all
of them have pending in one call of the store, then hands it to the tails and wakes the readers.
With nothing else to do that costs one round trip; under load batches grow by themselves.

A tail of a run that another process owns is fed by the follower, which waits for the store's
news. A reader does not know the difference: it reads the store up to where its tail begins, and
then the tail. There is one cursor and no seam.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum

from .errors import StoreError
from .events import Event
from .stores.base import RUNNING, Batch, Run, Store

logger = logging.getLogger(__name__)

#: Events that a tail keeps in memory: enough for a viewer who blinks. The rest is in the store.
KEPT = 2048
#: Events read from the store at a time, and written to one viewer at a time.
PAGE = 1024
#: Events that may wait for the store before the run that makes them has to wait, too.
PENDING = 8192


class Shared:
    """Consecutive events, made once for all readers at the same place.

    `frames` keeps what dialects made of these events, so that two thousand viewers of one run
    cost one rendering.
    """

    __slots__ = ("after", "ended", "events", "frames")

    def __init__(self, after: int, events: list[Event]) -> None:
        self.after = after
        self.events = events
        self.ended = events[-1].type == "end"
        self.frames: dict[str, bytes] = {}

    @property
    def last(self) -> int:
        return self.events[-1].seq


class Tail:
    """The newest events of one run's log, as far as they are stored.

    `start` is the seq before the oldest event kept, `last` that of the newest.
    """

    __slots__ = ("_readers", "_shared", "events", "failure", "last", "owned", "start")

    def __init__(self, start: int, owned: bool) -> None:
        self.start = self.last = start
        self.owned = owned
        self.events: list[Event] = []
        # An `end` that could not be stored: shown to those who are here, and to nobody later.
        self.failure: Event | None = None
        self._readers: dict[Reader, None] = {}
        self._shared: Shared | None = None

    def extend(self, events: Iterable[Event]) -> None:
        """Take events that are stored, leaving out those already here, and wake the readers."""
        new = [event for event in events if event.seq > self.last]
        if not new:
            return
        kept = self.events + new
        if len(kept) > KEPT:
            self.start = kept[-KEPT].seq - 1
            kept = kept[-KEPT:]
        # Replaced, never changed in place: a reader on another thread may be slicing it.
        self.events = kept
        self.last = new[-1].seq
        self.wake()

    def fail(self, end: Event) -> None:
        """End the run for those who read it here, without an entry in the log."""
        self.failure = end
        self.wake()

    def since(self, after: int) -> Shared | None:
        """All events after a seq that is not before `start`; None if there are none."""
        shared, events = self._shared, self.events
        if not events or events[-1].seq <= after:
            return None
        if shared is None or shared.after != after or shared.last != events[-1].seq:
            behind = events[-1].seq - after
            shared = self._shared = Shared(after, events[-behind:] if behind else events)
        return shared

    def wake(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    def add(self, reader: Reader) -> None:
        self._readers[reader] = None

    def remove(self, reader: Reader) -> int:
        """Forget a reader; how many are left."""
        self._readers.pop(reader, None)
        return len(self._readers)


class Reader:
    """One viewer's read of one run: take what there is, then wait until woken.

    `after` is the reader's place: the seq of the last event it took.
    """

    __slots__ = ("_close", "_store", "_tail", "_wake", "after", "run")

    def __init__(
        self, store: Store, run: str, tail: Tail, after: int, close: Callable[[Reader], None]
    ) -> None:
        self.run = run
        self.after = after
        self._store = store
        self._tail = tail
        self._close = close
        # A semaphore that counts to one: released by whoever has something to tell.
        self._wake = threading.Lock()
        self._wake.acquire()

    def take(self) -> Shared | None:
        """What is stored after this place, and move past it; None if that is nothing.

        Raises StoreError.
        """
        tail = self._tail
        if self.after < tail.start:
            events = self._store.read(self.run, self.after, PAGE)
            shared = Shared(self.after, events) if events else None
        else:
            shared = tail.since(self.after)
        if shared is None:
            if tail.failure is None:
                return None
            return Shared(self.after, [tail.failure])
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
        "_journal",
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
        journal: Journal,
        run: Run,
        owner: str,
        tail: Tail,
        on_trouble: Callable[[Trouble], None],
    ) -> None:
        self.run = run.id
        self.owner = owner
        self.tail = tail
        self.committed = self._seq = run.seq
        self.trouble: Trouble | None = None
        #: Set when the `end` is stored, or has been shown because it cannot be.
        self.settled = threading.Event()
        self._journal = journal
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
            self._journal.commit(self)

    def close(self, status: str, data: str) -> bool:
        """Say `end`, the last word, once; whether this call was the one that said it."""
        with self._lock:
            if self._closed is not None:
                return False
            self._closed = status
            self._seq += 1
            self._pending.append(Event(self._seq, "end", data))
            self._queued = True
        self._journal.commit(self)
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


class Journal:
    """Stores what runs say, then shows it. One per process and store.

    `patience` is how many seconds a batch is tried again when the store does not answer, before
    its runs are told. `on_cancel` is called with each run that is to be cancelled.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience: float,
        on_cancel: Callable[[str], None],
    ) -> None:
        self.store = store
        self._patience = patience
        self._on_cancel = on_cancel
        self._tails: dict[str, Tail] = {}
        self._unwritten: dict[Log, None] = {}
        self._lock = threading.Lock()
        self._queue: deque[Log] = deque()
        self._signal = threading.Event()
        self._closed = False
        self._threads: list[threading.Thread] = []

    # Writing

    def open(self, run: Run, owner: str, on_trouble: Callable[[Trouble], None]) -> Log:
        """The writing end of a run that `owner` has created or adopted."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            if tail is None:
                tail = self._tails[run.id] = Tail(run.seq, owned=True)
            tail.owned = True
        return Log(self, run, owner, tail, on_trouble)

    def release(self, log: Log) -> None:
        """The run is over for this process: forget its tail."""
        with self._lock:
            log.tail.owned = False
            # Those who read it have it; those who come later find the whole log in the store.
            if self._tails.get(log.run) is log.tail:
                del self._tails[log.run]

    def commit(self, log: Log) -> None:
        """Have the committer look at this log."""
        self._queue.append(log)
        if not self._signal.is_set():
            self._signal.set()

    def retry(self) -> None:
        """Try again to store what could not be stored, now and then, until it is settled."""
        unwritten, self._unwritten = self._unwritten, {}
        for log in unwritten:
            self.commit(log)

    def _commit_loop(self) -> None:
        while not self._closed:
            self._signal.wait()
            self._signal.clear()
            # Taken by count: others append meanwhile, and their signal is already set again.
            logs = [self._queue.popleft() for _ in range(len(self._queue))]
            pairs = [(log, batch) for log in dict.fromkeys(logs) if (batch := log.batch())]
            if pairs:
                self._write(pairs)

    def _write(self, pairs: list[tuple[Log, Batch]]) -> None:
        batches = [batch for _, batch in pairs]
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                answers = self.store.append(batches)
                break
            except StoreError as error:
                if time.monotonic() > deadline or self._closed:
                    logger.error("store: %s: giving up on %d runs", error, len(pairs))
                    for writer, _ in pairs:
                        self._unwritten[writer] = None
                        writer.fail()
                    return
                logger.warning("store: %s: trying again", error)
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
        for (writer, batch), stored in zip(pairs, answers, strict=True):
            if stored:
                writer.stored(batch)
            else:
                logger.warning("run %s: no longer ours to write", writer.run)
                writer.lose()

    # Reading

    def read(self, run: Run, after: int) -> Reader:
        """A reader of the run after a seq. Close it."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            new = tail is None
            if tail is None:
                # What is there already is read from the store; all of it, if the run is over.
                tail = Tail(run.seq, owned=False)
                if run.live:
                    self._tails[run.id] = tail
            reader = Reader(self.store, run.id, tail, after, self._leave)
            tail.add(reader)
        if new and run.live:
            self.store.watch(run.id)
        return reader

    def _leave(self, reader: Reader) -> None:
        with self._lock:
            tail = reader._tail
            left = tail.remove(reader)
            if left or tail.owned or self._tails.get(reader.run) is not tail:
                return
            del self._tails[reader.run]
        self.store.unwatch(reader.run)

    def wake(self) -> None:
        """Wake every reader of this process."""
        for tail in list(self._tails.values()):
            tail.wake()

    def _follow_loop(self) -> None:
        while not self._closed:
            try:
                for news in self.store.news(1.0):
                    if news.cancel:
                        self._on_cancel(news.run)
                    elif (tail := self._tails.get(news.run)) and not tail.owned:
                        self._feed(news.run, tail)
            except StoreError as error:
                logger.warning("store: %s: following again in a second", error)
                time.sleep(1.0)

    def _feed(self, run: str, tail: Tail) -> None:
        while events := self.store.read(run, tail.last, PAGE):
            tail.extend(events)

    # Life

    def _start(self) -> None:
        if self._threads:
            return
        with self._lock:
            if self._threads:
                return
            # Not before the first use: gunicorn may make the app and then fork.
            for target in (self._commit_loop, self._follow_loop):
                thread = threading.Thread(target=target, name=target.__name__, daemon=True)
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Write no more, wake everybody, end the threads. The store stays open."""
        self._closed = True
        self._signal.set()
        self.wake()
        for thread in self._threads:
            thread.join()
