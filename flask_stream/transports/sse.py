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

from flask import Response, request, stream_with_context

from ..dialects.base import Dialect
from ..errors import StoreError
from ..events import Event, encode
from ..pace import Every
from ..tail import Reader
from .base import LOOK, Permit

logger = logging.getLogger(__name__)

HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
#: A comment: it has no meaning for a client, and keeps what is between it and us awake.
HEARTBEAT = b":\n\n"
#: Seconds over which the clients of a worker that leaves come back to the others.
SPREAD = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between heartbeats, before a client reconnects, that a write may take."""

    heartbeat: float
    reconnect: float
    write_timeout: float


class _Stream:
    """One open response."""

    __slots__ = ("check", "due", "gone", "permit", "reader", "sock")

    def __init__(self, reader: Reader, sock: Any, due: float, permit: Permit) -> None:
        self.reader = reader
        self.sock = sock
        self.due = due
        self.permit = permit
        self.check = permit.due()
        self.gone = False


class SSE:
    """Serves readers as event streams, and looks after all that are open."""

    def __init__(self, pace: Pace, draining: Callable[[], bool]) -> None:
        self._pace = pace
        self._draining = draining
        self._open: dict[_Stream, None] = {}
        self._lock = threading.Lock()
        self._look: Every | None = None

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def respond(self, reader: Reader, dialect: Dialect, permit: Permit) -> Response:
        """A response that reads until the run ends. It closes the reader, and leaves the permit."""
        stream = self._enter(reader, permit)
        response = Response(
            stream_with_context(self._frames(stream, dialect)),
            mimetype="text/event-stream",
            headers=HEADERS,
        )
        # Not in the generator's `finally`: one that never started never gets there.
        response.call_on_close(lambda: self._leave(stream))
        return response

    def _frames(self, stream: _Stream, dialect: Dialect) -> Iterator[bytes]:
        reader, name = stream.reader, dialect.name
        # At once, so that the client has its headers while the model is still thinking.
        yield _retry(self._pace.reconnect)
        while not stream.gone:
            if time.monotonic() >= stream.check:
                refusal = stream.permit.refusal()
                if refusal is not None:
                    yield dialect.frames(reader.run, [_unauthorized(refusal)])
                    return
                stream.check = stream.permit.due()
            try:
                shared = reader.take()
            except StoreError as error:
                logger.warning("run %s: store: %s: reader sent away", reader.run, error)
                yield _retry(self._pace.reconnect + random.uniform(0, SPREAD))  # noqa: S311
                return
            if shared is not None:
                frames = shared.frames.get(name)
                if frames is None:
                    frames = shared.frames[name] = dialect.frames(reader.run, shared.events)
                if frames:
                    stream.due = time.monotonic() + self._pace.heartbeat
                    yield frames
                if shared.ended:
                    return
                continue
            if self._draining():
                yield _retry(self._pace.reconnect + random.uniform(0, SPREAD))  # noqa: S311
                return
            if time.monotonic() >= stream.due:
                stream.due = time.monotonic() + self._pace.heartbeat
                yield HEARTBEAT
            reader.wait()

    def _enter(self, reader: Reader, permit: Permit) -> _Stream:
        sock = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
        if sock is not None:
            with suppress(OSError):
                sock.settimeout(self._pace.write_timeout)
                # Finds the peer that went without a word, which a write would not for minutes.
                timeout = int(self._pace.write_timeout * 1000)
                if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
        stream = _Stream(reader, sock, time.monotonic() + self._pace.heartbeat, permit)
        with self._lock:
            self._open[stream] = None
            if self._look is None:
                self._look = Every(LOOK, self._look_after, "streams")
        return stream

    def _leave(self, stream: _Stream) -> None:
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
            elif now >= stream.due or now >= stream.check:
                stream.reader.wake()

    def close(self) -> None:
        """Look after streams no more."""
        if self._look is not None:
            self._look.stop()


def _closed(sock: Any) -> bool:
    """Whether the peer has closed its side. A half-close looks the same."""
    # Under gevent the socket is a wrapper that would wait for data: ask the one inside.
    inner = getattr(sock, "_sock", sock)
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
    return b"retry: %d\n\n" % (seconds * 1000)
