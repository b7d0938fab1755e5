"""A reader of event streams, written from the WHATWG specification, on a plain socket.

It shares no code with the server that it tests. Because it uses a socket, it can tell the end of a
body from a cut connection, and it can stop reading.
"""

import contextlib
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage, parse_headers
from io import BytesIO
from json import dumps, loads
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from .times import PATIENCE

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
"""Pairs are needed to send a name twice."""

LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True)
class ServerSentEvent:
    """An event as a browser would dispatch it."""

    type: str = "message"
    data: str = ""
    id: str = ""  # the last event id, which an earlier event may have set
    # Milliseconds, if this block set it. It belongs to the connection, not to the event.
    retry: int | None = field(default=None, compare=False)


class Parser:
    """Parses bytes, split anywhere, into events. An incomplete block is not an event."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []
        self.lines: list[str] = []
        self._rest = b""
        self._after_cr = False
        self._id = ""
        self._clear()

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        if not data:
            return []
        if self._after_cr:  # the CR has already ended the line; this may be the LF of a CRLF
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        first, *others = LINE_END.split(data)
        *lines, self._rest = [self._rest + first, *others]
        return [event for line in lines if (event := self._line(line))]

    def _clear(self) -> None:
        self._type = ""
        self._data: list[str] = []
        self._retry: int | None = None

    def _line(self, raw: bytes) -> ServerSentEvent | None:
        if not self.lines:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        line = raw.decode("utf-8", "replace")
        self.lines.append(line)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = self._retry = int(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        self.last_event_id = self._id
        event = None
        if self._data:
            data = "\n".join(self._data)
            event = ServerSentEvent(self._type or "message", data, self._id, self._retry)
        self._clear()
        return event


class _Body:
    """Decodes a body: chunked, with a length, or up to the end of the connection."""

    def __init__(self, headers: HTTPMessage, empty: bool) -> None:
        self.chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self.measured = not self.chunked and "Content-Length" in headers
        self._left = int(headers["Content-Length"]) if self.measured else 0
        self.done = empty or (self.measured and not self._left)
        self._last = False
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        if self.measured:
            self._left -= len(data)
            self.done = self._left <= 0
            return data
        return self._chunks(data) if self.chunked else data

    def _chunks(self, data: bytes) -> bytes:
        self._buffer += data
        pieces = []
        while not self.done:
            if self._left:
                pieces.append(self._buffer[: self._left])
                self._buffer = self._buffer[self._left :]
                self._left -= len(pieces[-1])
            line, end, rest = self._buffer.partition(b"\r\n")
            if self._left or not end:
                break
            self._buffer = rest
            if self._last:  # trailers, then an empty line
                self.done = not line
            elif line:  # an empty line is the line end after a chunk
                self._left = int(line.split(b";")[0], 16)
                self._last = not self._left
        return b"".join(pieces)


class Stream:
    """An HTTP/1.1 response that is read as it arrives. The constructor reads its headers.

    `ended` is None while the body is incomplete. Then it is `clean` if the body ended as HTTP
    requires, or `cut` if the connection ended before.
    """

    def __init__(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Headers = (),
        body: bytes | None = None,
        timeout: float = PATIENCE,
        receive_buffer: int | None = None,
    ) -> None:
        self.timeout = timeout
        self.parser = Parser()
        self.received = bytearray()  # the whole body so far, without its framing
        self.ended: Literal["clean", "cut"] | None = None
        self._events: deque[ServerSentEvent] = deque()
        self.socket = socket.socket()
        try:
            if receive_buffer is not None:  # has no effect after the connection is made
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._send(url, method, headers, body)
            self._read_head(method)
        except BaseException:
            self.socket.close()
            raise

    def _send(self, url: str, method: str, headers: Headers, body: bytes | None) -> None:
        parts = urlsplit(url)
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        given = {name.lower() for name, _ in pairs}
        usual = {"Host": parts.netloc, "Accept": "text/event-stream"}
        if body is not None:
            usual["Content-Length"] = str(len(body))
        pairs = [pair for pair in usual.items() if pair[0].lower() not in given] + pairs
        lines = [f"{method} {_target(url)} HTTP/1.1", *(f"{k}: {v}" for k, v in pairs)]
        self.socket.settimeout(self.timeout)
        self.socket.connect((parts.hostname, parts.port or 80))
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def _read_head(self, method: str) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(f"the connection ended in the response's head: {head!r}")
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        start, _, fields = head.partition(b"\r\n")
        self.status = int(start.split()[1])
        self.headers = parse_headers(BytesIO(fields + b"\r\n\r\n"))
        self._body = _Body(self.headers, empty=method == "HEAD" or self.status in (204, 304))
        self._take(rest)

    def _take(self, data: bytes) -> None:
        content = self._body.feed(data)
        self.received += content
        self._events.extend(self.parser.feed(content))
        if self._body.done:
            self.ended = "clean"

    def _receive(self, deadline: float) -> None:
        self.socket.settimeout(max(deadline - time.monotonic(), 1e-6))
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            self.ended = "cut"
            return
        if data:
            self._take(data)
        else:
            framed = self._body.chunked or self._body.measured
            self.ended = "cut" if framed else "clean"

    def next_event(self, timeout: float | None = None) -> ServerSentEvent | None:
        """Return the next event, or None at the end of the body. Raise TimeoutError."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not self._events and self.ended is None:
            self._receive(deadline)
        return self._events.popleft() if self._events else None

    def events(self, timeout: float | None = None) -> Iterator[ServerSentEvent]:
        """Return all events to the end of the body. The timeout applies to each of them."""
        while (event := self.next_event(timeout)) is not None:
            yield event

    def read(self, timeout: float | None = None) -> bytes:
        """Read to the end of the body; return all of it."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while self.ended is None:
            self._receive(deadline)
        return bytes(self.received)

    def close(self) -> None:
        """Close the connection with a FIN, as a closed tab does."""
        with contextlib.suppress(OSError):  # the server may have closed it first
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + ("?" + parts.query if parts.query else "")


@dataclass(frozen=True)
class Response:
    """A complete response. Header names are case-insensitive; `get_all` returns duplicates."""

    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return loads(self.body)


def request(
    method: str,
    url: str,
    *,
    json: Any = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Response:
    """Send one request, follow no redirects, and return the response."""
    parts = urlsplit(url)
    sent = dict(headers or {})
    if json is not None:
        body = dumps(json).encode()
        sent = {"Content-Type": "application/json"} | sent
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request(method, _target(url), body, sent)
        answer = connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())
    finally:
        connection.close()
