"""The socket under a WebSocket: whole frames out, in limited time; a fair share of bytes in."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..tasks import give_way
from .websocket_frames import border

#: Bytes that may be under way to a client, and how many more its last words may be.
ROOM, MORE = 1 << 15, 1 << 19
#: Seconds that a client has for hearing that it is over.
LINGER = 2.0
#: Seconds between two looks whether a write is still wanted.
_LOOK = 0.1
#: Reads in a row that find something before others have their turn.
_ROW = 8


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
        self._row = 0
        #: Whether nothing more is to be read for now.
        self.full: Callable[[], bool] = lambda: False
        # What is under way is not known to be read: little enough that we see who does not.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)

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
            give_way()
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

    def hang_up(self) -> None:
        """Whoever reads here is done."""
        self.full = lambda: False
        self.go_on()
        with suppress(OSError):
            self._inner.shutdown(socket.SHUT_RDWR)
