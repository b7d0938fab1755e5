"""The format in which each server sends a token."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable

from .frames import heard

#: Returns the text of an event from its name and data, or None if the event is not a token.
Shape = Callable[[str, str], str | None]


def plain(name: str, data: str) -> str | None:
    """Return the token: it is the data itself."""
    return data if not name else None


def native(name: str, data: str) -> str | None:
    """Return the token of flask_stream: an unnamed event with JSON."""
    return None if name else str(json.loads(data)["content"])


def langserve(name: str, data: str) -> str | None:
    """Return the token of LangServe: a message or a string, as JSON in events named `data`."""
    if name != "data":
        return None
    said = json.loads(data)
    return said if isinstance(said, str) else str(said["content"])


def openai(name: str, data: str) -> str | None:
    """Return the token of the provider itself."""
    if data == "[DONE]":
        return None
    said = json.loads(data)["choices"][0]["delta"].get("content")
    return str(said) if said else None


def websocket(name: str, data: str) -> str | None:
    """Return the token of flask_stream over WebSocket: an object for each event."""
    event = json.loads(data)
    return str(event["data"]["content"]) if event["type"] == "chunk" else None


def socketio(name: str, data: str) -> str | None:
    """Return the token of flask_stream over Socket.IO: its event in an Engine.IO message."""
    if not data.startswith('42["stream_chunk",'):
        return None
    return str(json.loads(data[2:])[1]["content"])


SHAPES: dict[str, Shape] = {
    "websocket": websocket,
    "socketio": socketio,
    "plain": plain,
    "native": native,
    "langserve": langserve,
    "openai": openai,
}


def tokens_of(raw: bytes, shape: Shape) -> list[tuple[str, int]]:
    """Return the tokens of a connection, each with the offset at which it was complete.

    Incomplete events are left out. Raises ValueError if `raw` is not an event stream.
    """
    head, gap, body = raw.partition(b"\r\n\r\n")
    if shape in (websocket, socketio):
        texts = heard(raw, len(head) + 4)
        return [(token, at) for text, at in texts if (token := shape("", text))]
    status = head.split(b"\r\n", 1)[0]
    if not gap or not status.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"answered {status.decode('latin-1') or 'nothing'!r}")
    start = len(head) + 4
    ends = [(len(body), len(raw))]
    if b"transfer-encoding: chunked" in head.lower():
        body, ends = _unchunked(raw, start)
    found: list[tuple[str, int]] = []
    line = b"\r\n" if b"\r\n" in body else b"\n"
    at = 0
    while (end := body.find(line + line, at)) >= 0:
        text = _text(body[at:end].decode(), shape)
        at = end + 2 * len(line)
        if text:
            # The event's offset on the connection follows from the HTTP chunk in which it ends.
            body_end, raw_end = ends[bisect_left(ends, (at, 0))]
            found.append((text, raw_end - (body_end - at)))
    return found


def _unchunked(raw: bytes, at: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the body, and where each of its HTTP chunks ends: in the body, and in `raw`."""
    parts: list[bytes] = []
    ends: list[tuple[int, int]] = []
    size = 0
    while (line := raw.find(b"\r\n", at)) >= 0:
        length = int(raw[at:line], 16)
        part = raw[line + 2 : line + 2 + length]
        at = line + 2 + length + 2
        if not part:
            break
        parts.append(part)
        size += len(part)
        ends.append((size, line + 2 + len(part)))
    return b"".join(parts), ends


def _text(event: str, shape: Shape) -> str | None:
    name, data = "", None
    for line in event.splitlines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data = value if data is None else f"{data}\n{value}"
        elif field == "event":
            name = value
    return shape(name, data) if data is not None else None
