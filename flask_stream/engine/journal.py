"""The journal: stores the events of all runs, then shows them to readers.

    run ──append──▶ LogWriter ─┐
    run ──append──▶ LogWriter ─┼─ committer ──▶ store ──▶ LogTail ──▶ LogReader, LogReader, …
    run ──append──▶ LogWriter ─┘ (one per process)

A `LogWriter` is the writing end of one run's log. A `LogTail` holds the newest events of one log. A
`LogReader` is one viewer's position in a log. Runs append to memory. The committer stores the
pending events of all runs in one call, passes them to the tails and wakes the readers. An idle
process stores an event at once; under load, batches grow by themselves.

The tail of a run that another process writes is fed by the follower, which waits for the store's
news. A reader works the same in both cases: it reads the store up to the first event of the tail,
and then the tail.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import StoreError
from ..stores.base import Batch, Run, Store
from .log_reader import PAGE, REMOVED, LogReader, LogTail
from .log_writer import LogWriter, WriteFailure

logger = logging.getLogger(__name__)

#: Failed attempts to store a batch after which this process no longer renews its run's lease.
MAX_FAILED_COMMITS = 20


class Journal:
    """Stores the events of runs, then shows them to readers. There is one per process and store.

    When the store does not answer, a batch is retried for `retry_timeout` seconds before its runs
    are stopped. `on_cancel` is called with the id of each run that is to be cancelled.
    """

    def __init__(
        self,
        store: Store,
        *,
        retry_timeout: float,
        on_cancel: Callable[[str], None],
    ) -> None:
        self.store = store
        self._retry_timeout = retry_timeout
        self._on_cancel = on_cancel
        self._tails: dict[str, LogTail] = {}
        self._unwritten: dict[LogWriter, None] = {}
        self._lock = threading.Lock()
        self._queue: deque[LogWriter] = deque()
        self._signal = threading.Event()
        self._closed = False
        self._threads: list[threading.Thread] = []

    # Writing

    def open(
        self, run: Run, lease_token: str, on_failure: Callable[[WriteFailure], None]
    ) -> LogWriter:
        """Return a writer for a run whose lease `lease_token` holds."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            followed = tail is not None and not tail.written_here
            if tail is None:
                tail = self._tails[run.id] = LogTail(run.seq, written_here=True)
            tail.written_here = True
            if followed:
                self.store.unwatch(run.id)  # this process has taken the run over
        return LogWriter(run, lease_token, tail, self.commit, on_failure)

    def release(self, log: LogWriter) -> None:
        """Forget the tail of a run that this process no longer writes.

        Its readers keep the tail, and later readers read the store. If another worker continues the
        run, its readers here follow that worker.
        """
        with self._lock:
            log.tail.written_here = False
            followed = log.failure is WriteFailure.LOST and log.tail.readers > 0
            if not followed and self._tails.get(log.run) is log.tail:
                del self._tails[log.run]
            if followed:
                self.store.watch(log.run)

    def commit(self, log: LogWriter) -> None:
        """Have the committer store this log's pending events."""
        self._queue.append(log)
        if not self._signal.is_set():
            self._signal.set()

    def unwritten(self) -> list[LogWriter]:
        """Return the writers with events that could not be stored, and are still being retried."""
        return [log for log in list(self._unwritten) if log.failed_commits < MAX_FAILED_COMMITS]

    def retry(self) -> None:
        """Try again to store the events that could not be stored."""
        for log in list(self._unwritten):
            self.commit(log)

    def _commit_loop(self) -> None:
        while not self._closed:
            self._signal.wait()
            self._signal.clear()
            # A fixed number: runs may add to the queue meanwhile, and set the signal again.
            logs = [self._queue.popleft() for _ in range(len(self._queue))]
            pairs = [(log, batch) for log in dict.fromkeys(logs) if (batch := log.batch())]
            if pairs:
                self._write(pairs)

    def _write(self, pairs: list[tuple[LogWriter, Batch]]) -> None:
        batches = [batch for _, batch in pairs]
        deadline = time.monotonic() + self._retry_timeout
        delay = 0.05
        while True:
            try:
                results = self.store.append(batches)
                break
            except Exception as error:
                # Any error but StoreError is a bug in the store. It must not end this thread, which
                # writes for every run.
                if not isinstance(error, StoreError):
                    logger.exception("store: unexpected error")
                if time.monotonic() > deadline or self._closed:
                    logger.error("store: %s: giving up, stopping %d runs", error, len(pairs))
                    for writer, _ in pairs:
                        writer.failed_commits += 1
                        self._unwritten[writer] = None
                        _notify(writer, writer.fail)
                    return
                logger.warning("store: %s: retrying", error)
                time.sleep(delay)
                delay = min(delay * 2, 1.0)
        for (writer, batch), stored in zip(pairs, results, strict=True):
            self._unwritten.pop(writer, None)
            if stored:
                _notify(writer, partial(writer.stored, batch))
            else:
                logger.warning("run %s: this worker has lost the lease", writer.run)
                _notify(writer, writer.lose_lease)

    # Reading

    def read(self, run: Run, after: int) -> LogReader:
        """Return a reader of the run's events after a seq. The caller closes it."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            new = tail is None
            if tail is None:
                # Events up to here are read from the store, and all events of a run that has ended.
                tail = LogTail(run.seq, written_here=False)
                if run.live:
                    self._tails[run.id] = tail
            reader = LogReader(self.store, run.id, tail, after, self._remove_reader)
            tail.add(reader)
            if new and run.live:
                self.store.watch(run.id)
        return reader

    def _remove_reader(self, reader: LogReader) -> None:
        with self._lock:
            tail = reader.tail
            tail.remove(reader)
            if tail.readers or tail.written_here or self._tails.get(reader.run) is not tail:
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
                    elif (tail := self._tails.get(news.run)) and not tail.written_here:
                        self._feed(news.run, tail)
            except Exception as error:  # as in `_write`: this thread must not end
                if not isinstance(error, StoreError):
                    logger.exception("store: unexpected error")
                logger.warning("store: %s: reading news again in a second", error)
                time.sleep(1.0)
                self._watch_all()

    def _watch_all(self) -> None:
        """Request news of every followed run again, since the latest news may be lost."""
        with self._lock:
            for run, tail in self._tails.items():
                if not tail.written_here:
                    self.store.watch(run)

    def _feed(self, run: str, tail: LogTail) -> None:
        before = tail.last
        while events := self.store.read(run, tail.last, PAGE):
            tail.extend(events)
        if tail.last == before and self.store.get(run) is None:
            # Its conversation was removed, so no `end` will come.
            tail.fail(REMOVED)

    # Threads

    def _start(self) -> None:
        if self._threads:
            return
        with self._lock:
            if self._threads:
                return
            # On first use, because gunicorn may fork after it has made the app.
            for target in (self._commit_loop, self._follow_loop):
                thread = threading.Thread(target=target, name=target.__name__, daemon=True)
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop writing, wake all readers and end the threads. The store stays open."""
        self._closed = True
        self._signal.set()
        self.wake()
        for thread in self._threads:
            thread.join()


def _notify(writer: LogWriter, callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:  # an error in one run must not end the thread that writes for every run
        logger.exception("run %s: its writer could not be notified", writer.run)
