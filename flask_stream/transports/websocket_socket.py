"""The socket under a WebSocket: whole frames out, in limited time; a fair share of bytes in."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..concurrency.fairness import yield_control
from ..errors import BadRequest, Unavailable

PING = b"\x89\x00"
_TEXT = 0x81
#: Where servers keep the socket in the environment of a request.
_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
#: Bytes that may be under way to a client, and how many more its last words may be.
ROOM, MORE = 1 << 15, 1 << 19
#: Messages that may wait to be heard before no more are read.
UNHEARD = 16
#: Seconds that a client has for hearing that it is over.
LINGER = 2.0
#: Seconds between two looks whether a write is still wanted.
_LOOK = 0.1
#: Reads in a row that find something before others have their turn.
_ROW = 8


def frame(text: str) -> bytes:
    """A text frame. A server's have no mask: the same bytes do for every client."""
    data = text.encode("utf-8", "replace")
    count = len(data)
    if count < 126:
        return bytes((_TEXT, count)) + data
    if count < 1 << 16:
        return bytes((_TEXT, 126)) + count.to_bytes(2, "big") + data
    return bytes((_TEXT, 127)) + count.to_bytes(8, "big") + data


def border(frames: bytes, place: int) -> int:
    """Where the frame ends that a place is in; the place itself where it is between two."""
    end = 0
    while end < place:
        end = _end(frames, end)
    return end


def parts(frames: bytes, most: int) -> Iterator[bytes]:
    """Frames, in parts of so many bytes at most, or of a single frame that is longer."""
    start = end = 0
    while end < len(frames):
        after = _end(frames, end)
        if end > start and after - start > most:
            yield frames[start:end]
            start = end
        end = after
    if frames:
        yield frames[start:]


def _end(frames: bytes, start: int) -> int:
    size = frames[start + 1]
    more = {126: 2, 127: 8}.get(size, 0)
    if more:
        size = int.from_bytes(frames[start + 2 : start + 2 + more], "big")
    return start + 2 + more + size


def check_upgrade(header: Callable[[str], str | None]) -> None:
    """Raise BadRequest for a handshake that is none; `header` gives what stands in one."""
    if "upgrade" not in (header("Connection") or "").lower().replace(" ", "").split(","):
        raise BadRequest("A handshake has Connection: Upgrade.", field="Connection")
    if not header("Host"):
        raise BadRequest("A handshake has a Host.", field="Host")
    if header("Sec-WebSocket-Version") != "13":
        raise BadRequest("The version is 13.", field="Sec-WebSocket-Version")
    try:
        random = b64decode(header("Sec-WebSocket-Key") or "", validate=True)
    except ValueError:
        random = b""
    if len(random) != 16:
        raise BadRequest("The key is 16 bytes in base64.", field="Sec-WebSocket-Key")


class Slow(OSError):
    """The client does not read."""


class Line:
    """Stands before a server's socket: simple-websocket reads and writes here.

    A write takes at most `patience` seconds.
    """

    def __init__(self, sock: Any, patience: float) -> None:
        self._sock = sock
        # gevent's would wait, where the one inside of it can be told not to.
        self._inner: socket.socket = getattr(sock, "_sock", sock)
        self._sealed = isinstance(sock, ssl.SSLSocket)
        self._patience = patience
        self._lock = threading.Lock()
        self._last: bytes | None = None
        self._broken = False  # half of a frame is out: nothing may follow
        #: When the client has last made room for something.
        self.moved = time.monotonic()
        self._room = threading.Event()
        self._heard_out = threading.Event()
        self._row = 0
        #: Whether nothing more is to be read for now.
        self.full: Callable[[], bool] = lambda: False
        # What is under way is not known to be read: little enough that we see who does not.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)

    @classmethod
    def take(cls, environ: dict[str, Any], patience: float) -> Line:
        """Stand before the socket of a request. Raises Unavailable where there is none."""
        # Compression would cost a third of a megabyte per connection, for words of a few bytes.
        environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
        name = next((name for name in _SOCKETS if name in environ), None)
        if name is None:
            raise Unavailable("This server has no WebSockets.")
        line = environ[name] = cls(environ[name], patience)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    # Out

    def send(self, data: bytes) -> int:
        """Write it all. Raises Slow, and OSError for a client that is gone."""
        with self._lock:
            if self._last is not None or self._broken:
                raise BrokenPipeError("the last word has been said")
            if self._sealed:
                self._seal(data)
                return len(data)
            sent, until = 0, time.monotonic() + self._patience
            while True:
                sent += self._push(memoryview(data)[sent:])
                if sent == len(data):
                    return sent
                left = until - time.monotonic()
                if self._last is not None or left <= 0:
                    break
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.poll(min(left, _LOOK) * 1000)
            self._finish_frame(data, sent)
        raise Slow("the client does not read")

    def _push(self, data: memoryview) -> int:
        try:
            sent = self._inner.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return 0
        self.moved = time.monotonic()
        return sent

    def _seal(self, data: bytes) -> None:
        self._sock.settimeout(self._patience)
        try:
            self._sock.sendall(data)
            self.moved = time.monotonic()
        except TimeoutError as late:
            self._broken = True
            raise Slow("the client does not read") from late
        finally:
            self._sock.settimeout(None)

    def _finish_frame(self, data: bytes, sent: int) -> None:
        """Let the frame that is half out be whole, so that a close frame may follow."""
        self._inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MORE)
        end = border(data, sent)
        self._broken = self._push(memoryview(data)[sent:end]) < end - sent

    def finish(self, last: bytes) -> None:
        """Say the last word, also to a client that may read it some day. It does not wait."""
        if self._last is None:
            self._last = last
            with self._lock, suppress(OSError):
                if self._broken:
                    pass
                elif self._sealed:
                    self._seal(last)
                else:
                    self._inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MORE)
                    self._push(memoryview(last))
        with suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)

    # In

    def recv(self, size: int) -> bytes:
        """What the client says next; nothing once it is gone."""
        while self.full():
            self._room.wait()
            self._room.clear()
        self._row += 1
        if self._row % _ROW == 0:
            # Who sends without a pause is always ready to be read, and nobody else would be.
            yield_control()
        if not self._sealed:
            try:
                return self._inner.recv(size, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                self._row = 0
        while True:
            with suppress(TimeoutError):  # a write's: the two have it in common
                data: bytes = self._sock.recv(size)
                return data

    def go_on(self) -> None:
        """Look again whether there is room for more."""
        self._room.set()

    def close(self) -> None:
        """Let the client hear the end: the server closes the socket.

        To close it with something unread would be a reset, and our last words be lost.
        """
        self.full = lambda: False
        until = time.monotonic() + LINGER
        with suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)
            while time.monotonic() < until and self.recv(1 << 16):
                pass
        self._heard_out.set()

    def hang_up(self) -> None:
        """Nobody writes here any more: let the client hear the end, and go."""
        self.full = lambda: False
        self.go_on()
        self._heard_out.wait(LINGER)
        with suppress(OSError):
            self._inner.shutdown(socket.SHUT_RDWR)
