"""The journal: what runs say is stored first and shown after, all runs in one round trip.

    run ──append──▶ Log ─┐
    run ──append──▶ Log ─┼─ committer ──▶ store ──▶ Tail ──▶ Reader, Reader, …
    run ──append──▶ Log ─┘   (one per process)

A `LogWriter` is the writing end of one run, a `LogTail` what this process knows of one log, a
`LogReader` is one viewer's place in it. Runs append to memory; the committer writes whatever all
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
from collections.abc import Callable
from functools import partial

from ..errors import StoreError
from ..stores.base import Batch, Run, Store
from .log_reader import PAGE, REMOVED, LogReader, LogTail
from .log_writer import LogWriter, WriteFailure

logger = logging.getLogger(__name__)

#: Times that a store which is there refuses a batch before its run is left to others.
TRIES = 20


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
        """Return the writing end of a run that `lease_token` holds."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            followed = tail is not None and not tail.owned
            if tail is None:
                tail = self._tails[run.id] = LogTail(run.seq, owned=True)
            tail.owned = True
            if followed:
                self.store.unwatch(run.id)  # taken over: what is new is said here from now on
        return LogWriter(run, lease_token, tail, self.commit, on_failure)

    def release(self, log: LogWriter) -> None:
        """The run is over for this process: forget its tail.

        Those who read it have it to its end; those who come later find it all in the store. If
        another owner goes on with the run, those who read it here follow that.
        """
        with self._lock:
            log.tail.owned = False
            followed = log.failure is WriteFailure.LOST and log.tail.readers > 0
            if not followed and self._tails.get(log.run) is log.tail:
                del self._tails[log.run]
            if followed:
                self.store.watch(log.run)

    def commit(self, log: LogWriter) -> None:
        """Have the committer look at this log."""
        self._queue.append(log)
        if not self._signal.is_set():
            self._signal.set()

    def unwritten(self) -> list[LogWriter]:
        """Those whose words could not be stored, as long as there is hope that they can be."""
        return [log for log in list(self._unwritten) if log.failed_commits < TRIES]

    def retry(self) -> None:
        """Try again to store what could not be stored, now and then, until it is settled."""
        for log in list(self._unwritten):
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

    def _write(self, pairs: list[tuple[LogWriter, Batch]]) -> None:
        batches = [batch for _, batch in pairs]
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                answers = self.store.append(batches)
                break
            except Exception as error:
                # A store raises StoreError; should it raise another, it is a fault of the store
                # all the same, and must not end the one thread that writes for every run.
                if not isinstance(error, StoreError):
                    logger.exception("store: failed")
                if time.monotonic() > deadline or self._closed:
                    logger.error("store: %s: giving up on %d runs", error, len(pairs))
                    for writer, _ in pairs:
                        writer.failed_commits += 1
                        self._unwritten[writer] = None
                        _tell(writer, writer.fail)
                    return
                logger.warning("store: %s: trying again", error)
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
        for (writer, batch), stored in zip(pairs, answers, strict=True):
            self._unwritten.pop(writer, None)
            if stored:
                _tell(writer, partial(writer.stored, batch))
            else:
                logger.warning("run %s: no longer ours to write", writer.run)
                _tell(writer, writer.lose_lease)

    # Reading

    def read(self, run: Run, after: int) -> LogReader:
        """A reader of the run after a seq. Close it."""
        self._start()
        with self._lock:
            tail = self._tails.get(run.id)
            new = tail is None
            if tail is None:
                # What is there already is read from the store; all of it, if the run is over.
                tail = LogTail(run.seq, owned=False)
                if run.live:
                    self._tails[run.id] = tail
            reader = LogReader(self.store, run.id, tail, after, self._leave)
            tail.add(reader)
            if new and run.live:
                self.store.watch(run.id)
        return reader

    def _leave(self, reader: LogReader) -> None:
        with self._lock:
            tail = reader.tail
            tail.remove(reader)
            if tail.readers or tail.owned or self._tails.get(reader.run) is not tail:
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
            except Exception as error:  # as above: nobody else follows
                if not isinstance(error, StoreError):
                    logger.exception("store: failed")
                logger.warning("store: %s: following again in a second", error)
                time.sleep(1.0)
                self._look_again()

    def _look_again(self) -> None:
        """Have news of every run that is followed: what was told just now may be lost."""
        with self._lock:
            for run, tail in self._tails.items():
                if not tail.owned:
                    self.store.watch(run)

    def _feed(self, run: str, tail: LogTail) -> None:
        before = tail.last
        while events := self.store.read(run, tail.last, PAGE):
            tail.extend(events)
        if tail.last == before and self.store.get(run) is None:
            # Its conversation was removed: nobody will end it any more.
            tail.fail(REMOVED)

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


def _tell(writer: LogWriter, what: Callable[[], None]) -> None:
    try:
        what()
    except Exception:  # one run's trouble must not end the one thread that writes for every run
        logger.exception("run %s: what was stored of it cannot be told", writer.run)
