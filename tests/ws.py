"""A WebSocket client written from the specification (RFC 6455), on a plain socket.

It shares no code with the server that it tests. It does nothing by itself: it reads, and answers
pings, only when a test calls it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from .times import PATIENCE

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Refused(Exception):
    """The server answered, but not with a handshake."""

    def __init__(self, status: int, head: bytes, body: bytes) -> None:
        super().__init__(f"{status} {body.decode('utf-8', 'replace')}")
        self.status = status
        self.head = head
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Frame:
    """A frame from the server."""

    opcode: int
    data: bytes

    @property
    def text(self) -> str:
        assert self.opcode == TEXT, self
        return self.data.decode()

    @property
    def code(self) -> int:
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.data[:2], "big")


class Ended(Exception):
    """The connection has ended. `code` is that of the server's close frame, or 1006 without one."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


class Socket:
    """An open connection. `received` contains the bytes of every text message so far."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = PATIENCE,
        receive_buffer: int | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.timeout = timeout
        self.received: list[bytes] = []
        self.pings = 0
        self.answers_pings = True
        self._rest = b""
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        try:
            if receive_buffer is not None:  # has no effect after the connection is made
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.connect((parts.hostname, parts.port or 80))
            self._handshake(parts.netloc, parts.path, parts.query, headers or {})
        except BaseException:
            self.socket.close()
            raise

    def _handshake(self, host: str, path: str, query: str, headers: Mapping[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {
            "Host": host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        } | dict(headers)
        lines = [f"GET {path}{'?' + query if query else ''} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items() if value]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._rest:
            data = self.socket.recv(65536)
            if not data:
                raise Ended(1006, f"in the handshake: {self._rest!r}")
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status != 101:
            body = self._rest
            while data := self.socket.recv(65536):
                body += data
                if b"keep-alive" in head.lower():
                    break
            raise Refused(status, head, body)
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest())
        assert b"sec-websocket-accept: " + accept.lower() in head.lower(), head
        assert b"extensions" not in head.lower(), head

    # Sending

    def frame(self, opcode: int, data: bytes, *, fin: bool = True) -> bytes:
        """Return a frame as a client sends it."""
        size = len(data)
        head = bytes([opcode | (0x80 if fin else 0)])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += struct.pack("!BH", 0x80 | 126, size)
        else:
            head += struct.pack("!BQ", 0x80 | 127, size)
        mask = b"\x5a\xa5\x12\xed"
        masked = bytes(a ^ b for a, b in zip(data, mask * (size // 4 + 1), strict=False))
        return head + mask + masked

    def send_frame(self, opcode: int, data: bytes = b"", *, fin: bool = True) -> None:
        self.socket.sendall(self.frame(opcode, data, fin=fin))

    def say(self, text: str) -> None:
        self.send_frame(TEXT, text.encode())

    def ask(self, **message: Any) -> None:
        """Send an object as JSON."""
        self.say(json.dumps(message))

    # Receiving

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._rest) < count:
            self.socket.settimeout(max(deadline - time.monotonic(), 1e-6))
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Ended(1006, repr(self._rest))
            self._rest += data
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def next_frame(self, timeout: float | None = None) -> Frame:
        """Return the next frame of any kind. Raise Ended or TimeoutError."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        first, size = self._take(2, deadline)
        assert first & 0x80, "the server sent a fragment"
        assert not size & 0x80, "the server sent a masked frame"
        if size == 126:
            size = int.from_bytes(self._take(2, deadline), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8, deadline), "big")
        return Frame(first & 0x0F, self._take(size, deadline))

    def next(self, timeout: float | None = None) -> str:
        """Return the next text message, answering pings. Raise Ended with the server's code."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            frame = self.next_frame(max(0.0, deadline - time.monotonic()))
            if frame.opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    self.send_frame(PONG, frame.data)
            elif frame.opcode == CLOSE:
                raise Ended(frame.code if frame.data else 1005, frame.data[2:].decode())
            elif frame.opcode != PONG:
                self.received.append(frame.data)
                return frame.text

    def event(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the next event."""
        event: dict[str, Any] = json.loads(self.next(timeout))
        assert event.keys() == {"id", "type", "data"}
        return event

    def events(self, until: str = "end") -> list[dict[str, Any]]:
        """Return all events up to the next one of this type."""
        found = [self.event()]
        while found[-1]["type"] != until:
            found.append(self.event())
        return found

    def end(self, timeout: float | None = None) -> int:
        """Read until the connection ends; return its close code."""
        try:
            while True:
                self.next(timeout)
        except Ended as ended:
            return ended.code

    def leave(self, code: int = 1000) -> int:
        """Close as a browser does; return the server's close code."""
        self.send_frame(CLOSE, code.to_bytes(2, "big"))
        return self.end()

    def close(self) -> None:
        """Close the socket without a close frame."""
        self.socket.close()

    def reset(self) -> None:
        """Reset the connection, as a broken network does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def places(events: list[dict[str, Any]]) -> list[int]:
    """Return the seqs of events, which all belong to one run."""
    runs = {event["id"].rpartition(":")[0] for event in events}
    assert len(runs) == 1, runs
    return [int(event["id"].rpartition(":")[2]) for event in events]


def text_of(events: list[dict[str, Any]]) -> str:
    """Return the text of the chunks among the events."""
    return "".join(event["data"]["content"] for event in events if event["type"] == "chunk")
