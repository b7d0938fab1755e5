"""What a WebSocket carries: events as frames, and what a client's frames ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import BadRequest
from ..events import Cursor, Event

END = "<END_STREAM>"
PING = b"\x89\x00"
_TEXT = 0x81


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


def objects(run: str, events: Sequence[Event]) -> bytes:
    """An object for each event."""
    # Data is JSON already, and neither ids nor types have anything to escape.
    return b"".join(
        frame(f'{{"id":{_id(run, seq)},"type":"{type}","data":{data}}}')
        for seq, type, data in events
    )


def texts(run: str, events: Sequence[Event]) -> bytes:
    """The text alone."""
    return b"".join(map(frame, _said(events)))


def _id(run: str, seq: int) -> str:
    return f'"{run}:{seq}"' if seq else "null"


def _said(events: Sequence[Event]) -> Iterator[str]:
    for event in events:
        if event.type == "chunk":
            data = event.value()
            if data["kind"] == "text" and data["content"]:
                yield data["content"]
        elif event.type == "end":
            error = event.value()["error"]
            if error:
                yield f"Error: {error['message']}"
            yield END


def understood(message: str | bytes) -> dict[str, Any]:
    """What a client's frame says. Raises BadRequest for one that says nothing."""
    if isinstance(message, bytes):
        raise BadRequest("Send text, not bytes.", field="frame")
    try:
        value = json.loads(message, parse_constant=_no_constant)
    except ValueError:
        value = None
    except RecursionError:
        raise BadRequest("The message is too deep.", field="frame") from None
    return value if isinstance(value, dict) else {"question": message}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def place(message: Mapping[str, Any]) -> Cursor:
    """Where `run` and `after` say that a client is. Raises BadRequest."""
    run, after = message.get("run"), message["after"]
    if run is not None and not isinstance(run, str):
        raise BadRequest("run is not text.", field="run")
    text = str(after) if isinstance(after, int) and not isinstance(after, bool) else after
    try:
        return Cursor.of(run, text) if run is not None else Cursor.parse(text)
    except (ValueError, TypeError):
        raise BadRequest("after is a seq with run, or <run>:<seq>.", field="after") from None
