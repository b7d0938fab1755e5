"""Server-sent events: a reader's way to a client over a plain HTTP response.

A stream ends in one of six ways: the run ends; the client goes; the client takes too long to
accept what is written; the worker is being replaced; the store cannot be read; the client may no
longer read, and is told so. Only the first is the run's end. In every other case the run goes on
and the client comes back with its cursor.
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
from .base import LOOK, Permit

logger = logging.getLogger(__name__)

#: A comment: clients ignore it, and it keeps proxies from closing a silent connection.
COMMENT = b":\n\n"
#: Seconds over which the clients of a worker that leaves come back to the others.
SPREAD = 2.0


@dataclass(frozen=True, slots=True)
class SSETimings:
    """Seconds: between heartbeats, before a client reconnects, that a write may take."""

    heartbeat: float
    reconnect: float
    write_timeout: float


class SSEStream:
    """One open event stream. `frames` may be iterated once; `close` has to be called."""

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
        """Yield what to write, until the stream ends."""
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
                logger.warning("run %s: store: %s: reader sent away", reader.run, error)
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
    """Opens event streams, and watches those that are open."""

    def __init__(self, timings: SSETimings, draining: Callable[[], bool]) -> None:
        self._timings = timings
        self._draining = draining
        self._open: dict[SSEStream, None] = {}
        self._lock = threading.Lock()
        self._look: Periodic | None = None

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def open_stream(
        self, reader: LogReader, dialect: Dialect, permit: Permit, sock: Any
    ) -> SSEStream:
        """Open a stream of what `reader` reads, until the run ends.

        `sock` is the connection's socket, or None where it is not known: then a client that has
        gone is noticed at the second write.
        """
        if sock is not None:
            with suppress(OSError):
                sock.settimeout(self._timings.write_timeout)
                # Finds the peer that went without a word, which a write would not for minutes.
                timeout = int(self._timings.write_timeout * 1000)
                if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
        stream = SSEStream(
            reader, dialect, permit, sock, self._timings, self._draining, self._leave
        )
        with self._lock:
            self._open[stream] = None
            if self._look is None:
                self._look = Periodic(LOOK, self._look_after, "streams")
        return stream

    def _leave(self, stream: SSEStream) -> None:
        with self._lock:
            self._open.pop(stream, None)
        stream.reader.close()
        stream.permit.leave()
        if stream.sock is not None:
            with suppress(OSError):
                stream.sock.settimeout(None)

    def _look_after(self) -> None:
        """Wake the streams that have something to do although their run is silent."""
        # Nothing else would notice that a client has gone before the second write after it:
        # while a response streams, nobody reads its socket.
        now = time.monotonic()
        for stream in list(self._open):
            if stream.sock is not None and _closed(stream.sock):
                stream.gone = True
                stream.reader.wake()
            elif now >= stream.next_heartbeat or now >= stream.next_check:
                stream.reader.wake()

    def close(self) -> None:
        """Look after streams no more."""
        if self._look is not None:
            self._look.stop()


def _closed(sock: Any) -> bool:
    """Whether the peer has closed its side. A half-close looks the same."""
    # Under gevent the socket is a wrapper that would wait for data: ask the one inside.
    inner = plain_socket(sock)
    try:
        return not inner.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return False
    except ValueError:  # TLS: it cannot be peeked at; a write will tell
        return False
    except OSError:
        return True


def _unauthorized(sentence: str) -> Event:
    """What a client hears last that may no longer read. It is no event of the run: no place."""
    return Event(0, "unauthorized", encode({"code": "unauthorized", "message": sentence}))


def _retry(seconds: float) -> bytes:
    """Return the line that sets a client's reconnection time; an event's block has to follow."""
    return b"retry: %d\n" % (seconds * 1000)
