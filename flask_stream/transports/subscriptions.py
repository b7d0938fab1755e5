"""The runs that one client reads at the same time over one connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.log_reader import LogReader, ReadBatch
from ..errors import RequestError, StoreError, TooManyRequests
from ..events import Cursor
from ..stores.base import Run
from .base import ConnectionSession

logger = logging.getLogger(__name__)

#: The number of runs that a connection may read at once, and that it may stop at once.
MAX_RUNS = 50


class Subscriptions:
    """Reads each run in a thread of its own, in the order of its log.

    `deliver` is called with a reader and the batch that it has read. It must hold `lock` while it
    sends, and send only if `is_current` returns True; otherwise a client that subscribes to a run
    again, from another cursor, would receive events twice. `on_store_error` is called when a log
    cannot be read.
    """

    def __init__(
        self,
        session: ConnectionSession,
        deliver: Callable[[LogReader, ReadBatch], None],
        on_store_error: Callable[[], None],
    ) -> None:
        self.session = session
        self.lock = threading.Lock()
        #: The id of the run that was started last.
        self.last_run: str | None = None
        self._deliver = deliver
        self._on_store_error = on_store_error
        self._readers: dict[str, LogReader] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._readers)

    def start(self, message: Mapping[str, Any]) -> Run:
        """Start the run that a message asks for, and read it. Raise RequestError."""
        check_capacity(len(self))
        run = self.session.start(message)
        self.last_run = run.id
        self.subscribe(Cursor(run.id, 0))
        return run

    def subscribe(self, cursor: Cursor) -> bool:
        """Read a run after the cursor; return False if there is nothing more to read.

        Raise RequestError if the run may not be read.
        """
        if cursor.run not in self._readers:
            check_capacity(len(self))
        reader = self.session.read(cursor)
        if reader is None:
            return False
        with self.lock:
            earlier, self._readers[cursor.run] = self._readers.get(cursor.run), reader
        if earlier is not None:
            earlier.wake()
        threading.Thread(target=self._read, args=(reader,), name="read", daemon=True).start()
        return True

    def is_current(self, reader: LogReader) -> bool:
        """Return whether this reader is still the one that reads its run."""
        return not self._closed and self._readers.get(reader.run) is reader

    def _read(self, reader: LogReader) -> None:
        try:
            while self.is_current(reader):
                batch = reader.take()
                if batch is None:
                    reader.wait()
                    continue
                self._deliver(reader, batch)
                if batch.ended:
                    break
        except (StoreError, RequestError) as error:
            logger.warning("run %s cannot be read: %s; closing the connection", reader.run, error)
            self._on_store_error()
        finally:
            reader.close()
            with self.lock:
                if self._readers.get(reader.run) is reader:
                    del self._readers[reader.run]

    def close(self) -> None:
        """End all readers. Their runs continue."""
        self._closed = True
        for reader in list(self._readers.values()):
            reader.wake()


def check_capacity(count: int) -> None:
    """Raise TooManyRequests if a connection with `count` runs may not have another one."""
    if count >= MAX_RUNS:
        raise TooManyRequests("This connection has too many runs under way.", retry_after=1)
