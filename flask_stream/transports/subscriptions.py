"""What one client has under way: the runs that it reads, side by side on one connection."""

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

#: Runs that a connection may read at once, and runs that it may stop.
MOST = 50


class Subscriptions:
    """Reads each run in a thread of its own, in the order of its log.

    `deliver` is given a reader and what it has read. It says so to the client while it holds
    `lock` and after a look at `reads`: then nothing comes twice when a run is followed anew from
    another place. `lost` is called when the store cannot be read.
    """

    def __init__(
        self,
        desk: ConnectionSession,
        deliver: Callable[[LogReader, ReadBatch], None],
        lost: Callable[[], None],
    ) -> None:
        self.desk = desk
        self.lock = threading.Lock()
        #: The run that was started last.
        self.last: str | None = None
        self._deliver = deliver
        self._lost = lost
        self._readers: dict[str, LogReader] = {}
        self._gone = False

    def __len__(self) -> int:
        return len(self._readers)

    def start(self, message: Mapping[str, Any]) -> Run:
        """Start what a message asks for, and read it. Raises RequestError."""
        check_room(len(self))
        run = self.desk.start(message)
        self.last = run.id
        self.follow(Cursor(run.id, 0))
        return run

    def follow(self, place: Cursor) -> bool:
        """Read on from there; False when all was read. Raises RequestError."""
        if place.run not in self._readers:
            check_room(len(self))
        reader = self.desk.read(place)
        if reader is None:
            return False
        with self.lock:
            earlier, self._readers[place.run] = self._readers.get(place.run), reader
        if earlier is not None:
            earlier.wake()
        threading.Thread(target=self._read, args=(reader,), name="read", daemon=True).start()
        return True

    def reads(self, reader: LogReader) -> bool:
        """Whether what this reader reads is still for the client."""
        return not self._gone and self._readers.get(reader.run) is reader

    def _read(self, reader: LogReader) -> None:
        try:
            while self.reads(reader):
                shared = reader.take()
                if shared is None:
                    reader.wait()
                    continue
                self._deliver(reader, shared)
                if shared.ended:
                    break
        except (StoreError, RequestError) as error:
            logger.warning("run %s: %s: reader sent away", reader.run, error)
            self._lost()
        finally:
            reader.close()
            with self.lock:
                if self._readers.get(reader.run) is reader:
                    del self._readers[reader.run]

    def leave(self) -> None:
        """The client has gone: its readers end, its runs go on."""
        self._gone = True
        for reader in list(self._readers.values()):
            reader.wake()


def check_room(under_way: int) -> None:
    """Raise TooMany when a connection has enough to do."""
    if under_way >= MOST:
        raise TooManyRequests("Too much is under way on this connection.", retry_after=1)
