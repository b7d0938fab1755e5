"""A WebSocket on a server's socket: messages in, whole frames out in limited time."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from errno import EPIPE
from typing import Any, NoReturn

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from ..concurrency.fairness import yield_control
from .websocket_frames import WRITE_SIZE
from .websocket_handshake import AcceptedHandshake

#: Bytes that one read takes.
_READ_SIZE = 4096
#: Bytes that may be under way to a client besides, so that its last frames are whole.
_LAST_SIZE = 1 << 19
#: Seconds that a client has to read the close frame before the connection is cut.
LINGER = 2.0
#: Seconds between two looks whether a write that waits is still wanted.
_CHECK_INTERVAL = 0.1
#: Reads and messages in a row, none of them waited for, before others have their turn.
_TURN = 8
#: A close frame's reason has at most so many bytes.
_REASON_SIZE = 123
#: What a socket that does not block raises when it would.
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SlowClient(OSError):
    """The client did not read within the time that a write may take."""


class WebSocketClosed(Exception):
    """The connection is closed, and all its messages have been received."""


class WebSocket:
    """One connection. A single thread receives; any thread may send and close.

    `sock` is the server's socket for the connection, with or without TLS. The caller has to call
    `finish` in the receiving thread before the server closes the socket.
    """

    def __init__(self, sock: Any, handshake: AcceptedHandshake, write_timeout: float) -> None:
        self._sock = sock
        self._protocol = handshake.protocol
        self._write_timeout = write_timeout
        self._messages: deque[str | bytes] = deque()
        self._partial: bytearray | None = None  # a message in fragments
        self._partial_is_text = False
        self._state_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._sealed = isinstance(sock, ssl.SSLSocket)
        self._tls_lock = threading.Lock()
        #: When the close frame was sent, or the connection was found to be closed.
        self._closed_at: float | None = None
        self._broken = False  # a part of a frame was written: nothing may follow it
        self._waiting = False  # for the client to send something
        self._cut_timer: threading.Timer | None = None
        self._turn = 0
        #: When the client last sent a pong, and when it last made room for something.
        self.pong_at = self.written_at = time.monotonic()
        # What the kernel holds is not known to be read: keep it small, to notice who does not read.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WRITE_SIZE)
        # Reads and writes wait on their own, with a time of their own.
        sock.settimeout(0)
        with suppress(OSError):  # `receive` reports it
            self.send(handshake.response)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed_at is not None

    # Out

    def send(self, frames: bytes) -> None:
        """Write whole frames. Raises SlowClient, and OSError for a connection that is closed."""
        with self._write_lock:
            if self._closed_at is not None or self._broken:
                raise BrokenPipeError("the WebSocket is closed")
            sent = self._write(frames)
            deadline = time.monotonic() + self._write_timeout
            while sent < len(frames):
                left = deadline - time.monotonic()
                if left <= 0 or self._closed_at is not None:
                    # Whole frames, so that a close frame may follow them.
                    self._grow_buffer()
                    sent += self._write(frames, sent)
                    self._broken = sent < len(frames)
                    raise SlowClient("the client does not read")
                self._poll(select.POLLOUT, min(left, _CHECK_INTERVAL))
                sent += self._write(frames, sent)

    def _write(self, data: bytes, start: int = 0) -> int:
        """Write as much as there is room for."""
        sent = 0
        view = memoryview(data)[start:]
        try:
            while sent < len(view):
                if self._sealed:
                    with self._tls_lock:
                        written = self._sock.send(view[sent:])
                else:
                    written = self._sock.send(view[sent:])
                if not written:
                    break
                sent += written
        except _WOULD_BLOCK:
            pass
        if sent:
            self.written_at = time.monotonic()
        return sent

    def _grow_buffer(self) -> None:
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LAST_SIZE)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, without waiting, and nothing after it. It may be called again."""
        with self._state_lock:
            if self._protocol.state is not State.OPEN:
                return
            short = reason.encode()[:_REASON_SIZE].decode(errors="ignore")
            self._protocol.send_close(code, short)
            last = b"".join(self._protocol.data_to_send())
        self._send_last(last)

    def _send_last(self, last: bytes) -> None:
        self._closed_at = time.monotonic()
        with self._write_lock:  # a write that waits ends when it sees that
            if not self._broken:
                with suppress(OSError):
                    self._grow_buffer()
                    self._write(last)
            self._shutdown(socket.SHUT_WR)
        if self._waiting:
            # The receiving thread waits for a client that may send nothing more.
            self._cut_timer = timer = threading.Timer(LINGER, self._cut)
            timer.daemon = True
            timer.start()

    def _cut(self) -> None:
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        with self._tls_lock, suppress(OSError):  # it takes the TLS off the socket
            self._sock.shutdown(how)

    def finish(self) -> None:
        """Give the client time to read the close frame; then the server may close the socket.

        To close it while something is unread resets the connection, and the client may lose the
        frames that it has not read by then.
        """
        self.close(CloseCode.NORMAL_CLOSURE, "")
        deadline = (self._closed_at or time.monotonic()) + LINGER
        with suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                if self._read(left) == b"":
                    break
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._cut()
        with suppress(OSError):
            self._sock.settimeout(None)

    # In

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, or None when there is none within `timeout` seconds.

        None also says that all that the client has sent by now was received. Raises
        WebSocketClosed, and SlowClient for a client that does not read what it is answered.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._messages:
            if self._closed_at is not None:
                raise WebSocketClosed
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                data = self._read(left)
                if data is None and self._closed_at is None:
                    return None
                self._parse(data or b"")
            except SlowClient:
                raise
            except OSError:
                self._closed_at = self._closed_at or time.monotonic()
        self._take_turn()
        return self._messages.popleft()

    def _read(self, timeout: float | None) -> bytes | None:
        """Return what comes next, nothing at the end, None if nothing comes in time."""
        self._take_turn()
        while True:
            try:
                if self._sealed:
                    with self._tls_lock:
                        return bytes(self._sock.recv(_READ_SIZE))
                return bytes(self._sock.recv(_READ_SIZE))
            except _WOULD_BLOCK:
                self._turn = 0
            self._waiting = True
            try:
                # `close` may have been called just before, when nobody waited.
                if self._closed_at is not None and (timeout is None or timeout > LINGER):
                    timeout = LINGER
                if not self._poll(select.POLLIN, timeout):
                    return None
            finally:
                self._waiting = False

    def _take_turn(self) -> None:
        """Let others work: a client that sends without a pause always has something to read."""
        self._turn += 1
        if self._turn % _TURN == 0:
            yield_control()

    def _poll(self, event: int, seconds: float | None) -> bool:
        if seconds == 0:
            return False
        poll = select.poll()
        poll.register(self._sock, event)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _parse(self, data: bytes) -> None:
        """Take in what was read, and answer what has to be answered."""
        with self._state_lock:
            if self._protocol.state is not State.OPEN:
                return
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            try:
                for frame in self._protocol.events_received():
                    if isinstance(frame, Frame):
                        self._collect(frame)
            except UnicodeDecodeError:
                if self._protocol.state is State.OPEN:
                    self._protocol.fail(CloseCode.INVALID_DATA, "The text is not UTF-8.")
            answer = b"".join(self._protocol.data_to_send())
            over = self._protocol.state is not State.OPEN
        if over or not data:
            self._send_last(answer)
        elif answer:
            self.send(answer)

    def _collect(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self.pong_at = time.monotonic()
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._partial_is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                self._add(bytes(frame.data))
            else:
                self._partial = bytearray(frame.data)
        elif frame.opcode is Opcode.CONT and self._partial is not None:
            self._partial += frame.data
            if frame.fin:
                whole, self._partial = bytes(self._partial), None
                self._add(whole)

    def _add(self, message: bytes) -> None:
        self._messages.append(message.decode() if self._partial_is_text else message)


def end_request() -> NoReturn:
    """End a request whose connection was a WebSocket, by raising BrokenPipeError.

    The servers that give their socket away (gunicorn, Werkzeug) all close a connection, without
    an answer and without an error in the log, when a write to it fails.
    """
    raise BrokenPipeError(EPIPE, "the connection was a WebSocket")
