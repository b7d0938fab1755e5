"""Server-sent events: a run's events as the body of an HTTP response.

A stream ends for one of six reasons: the run has ended, the client has closed the connection, a
write took too long, the worker is stopping, the store cannot be read, or the client is no longer
allowed to read. In all cases but the first the run continues, and the client can reconnect with
its cursor.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..concurrency.greenlets import plain_socket
from ..concurrency.periodic import Periodic
from ..dialects.base import Dialect
from ..engine.log_reader import LogReader
from ..errors import StoreError
from ..events import Event, encode
from .base import CHECK_INTERVAL, Permit

logger = logging.getLogger(__name__)

#: A comment: clients ignore it, and it keeps proxies from closing a silent connection.
COMMENT = b":\n\n"
#: Seconds over which the clients of a stopping worker spread their reconnects.
SPREAD = 2.0


@dataclass(frozen=True, slots=True)
class SSETimings:
    """Seconds between heartbeats, before a client reconnects, and for one write."""

    heartbeat: float
    reconnect: float
    write_timeout: float


class SSEStream:
    """One open event stream. Iterate `frames` once, and always call `close`."""

    __slots__ = (
        "_close",
        "_dialect",
        "_draining",
        "_timings",
        "gone",
        "next_check",
        "next_heartbeat",
        "permit",
        "reader",
        "sock",
    )

    def __init__(
        self,
        reader: LogReader,
        dialect: Dialect,
        permit: Permit,
        sock: Any,
        timings: SSETimings,
        draining: Callable[[], bool],
        close: Callable[[SSEStream], None],
    ) -> None:
        self.reader = reader
        self.permit = permit
        self.sock = sock
        self.gone = False
        self.next_heartbeat = time.monotonic() + timings.heartbeat
        self.next_check = permit.due()
        self._dialect = dialect
        self._timings = timings
        self._draining = draining
        self._close = close

    def frames(self) -> Iterator[bytes]:
        """Yield the body, piece by piece, until the stream ends."""
        reader, dialect, timings = self.reader, self._dialect, self._timings
        # A comment sends the headers at once, while the model is still thinking. `retry` must not:
        # alone in its block, it reaches some clients as a message without data.
        yield COMMENT
        retry = _retry(timings.reconnect)
        while not self.gone:
            if time.monotonic() >= self.next_check:
                refusal = self.permit.refusal()
                if refusal is not None:
                    yield retry + dialect.frames(reader.run, [_unauthorized(refusal)])
                    return
                self.next_check = self.permit.due()
            try:
                batch = reader.take()
            except StoreError as error:
                logger.warning("run %s: store: %s: reader told to reconnect", reader.run, error)
                yield self._send_away()
                return
            if batch is not None:
                frames = batch.frames.get(dialect.name)
                if frames is None:
                    frames = batch.frames[dialect.name] = dialect.frames(reader.run, batch.events)
                if frames:
                    self.next_heartbeat = time.monotonic() + timings.heartbeat
                    # Outside of the frames, which all readers of the run share.
                    yield retry + frames if retry else frames
                    retry = b""
                if batch.ended:
                    return
                continue
            if self._draining():
                yield self._send_away()
                return
            if time.monotonic() >= self.next_heartbeat:
                self.next_heartbeat = time.monotonic() + timings.heartbeat
                yield COMMENT
            reader.wait()

    def _send_away(self) -> bytes:
        """Return the event that tells the client when to come back, to another worker."""
        after = round(self._timings.reconnect + random.uniform(0, SPREAD), 3)  # noqa: S311
        event = Event(0, "reconnect", encode({"after": after}))
        return _retry(after) + self._dialect.frames(self.reader.run, [event])

    def close(self) -> None:
        """Close the reader, release the permit, and forget the stream."""
        self._close(self)


class SSETransport:
    """Opens event streams, and watches over the open ones."""

    def __init__(self, timings: SSETimings, draining: Callable[[], bool]) -> None:
        self._timings = timings
        self._draining = draining
        self._open: dict[SSEStream, None] = {}
        self._lock = threading.Lock()
        self._periodic: Periodic | None = None

    @property
    def open(self) -> int:
        """The number of open streams."""
        return len(self._open)

    def open_stream(
        self, reader: LogReader, dialect: Dialect, permit: Permit, sock: Any
    ) -> SSEStream:
        """Open a stream of the events that `reader` reads.

        `sock` is the connection's socket. If it is None, a closed connection is noticed only at
        the second write.
        """
        if sock is not None:
            with suppress(OSError):
                sock.settimeout(self._timings.write_timeout)
                # Detects a peer that vanished without closing. Otherwise that takes minutes.
                timeout = int(self._timings.write_timeout * 1000)
                if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
        stream = SSEStream(
            reader, dialect, permit, sock, self._timings, self._draining, self._remove
        )
        with self._lock:
            self._open[stream] = None
            if self._periodic is None:
                self._periodic = Periodic(CHECK_INTERVAL, self._check_streams, "streams")
        return stream

    def _remove(self, stream: SSEStream) -> None:
        with self._lock:
            self._open.pop(stream, None)
        stream.reader.close()
        stream.permit.leave()
        if stream.sock is not None:
            with suppress(OSError):
                stream.sock.settimeout(None)

    def _check_streams(self) -> None:
        """Wake the streams that must act although their run is silent."""
        # While a response streams, nothing reads its socket. Without this, a closed connection
        # would be noticed only at the second write.
        now = time.monotonic()
        for stream in list(self._open):
            if stream.sock is not None and _closed(stream.sock):
                stream.gone = True
                stream.reader.wake()
            elif now >= stream.next_heartbeat or now >= stream.next_check:
                stream.reader.wake()

    def close(self) -> None:
        """Stop watching the streams."""
        if self._periodic is not None:
            self._periodic.stop()


def _closed(sock: Any) -> bool:
    """Return whether the peer has closed its side. A half-close looks the same."""
    # gevent's socket would wait for data: use the one inside it.
    inner = plain_socket(sock)
    try:
        return not inner.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return False
    except ValueError:  # TLS sockets do not support MSG_PEEK: a write will notice
        return False
    except OSError:
        return True


def _unauthorized(sentence: str) -> Event:
    """Return the last event for a client that may no longer read. It is not in the log."""
    return Event(0, "unauthorized", encode({"code": "unauthorized", "message": sentence}))


def _retry(seconds: float) -> bytes:
    """Return the line that sets a client's reconnection time; an event's block has to follow."""
    return b"retry: %d\n" % (seconds * 1000)
