"""What a WebSocket carries: events as frames, and what a client's frames ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import BadRequest
from ..events import Event, decode
from .websocket_socket import frame

END = "<END_STREAM>"


def objects(run: str, events: Sequence[Event]) -> bytes:
    """An object for each event."""
    # Data is JSON already, and neither ids nor types have anything to escape.
    return b"".join(
        frame(f'{{"id":{_id(run, seq)},"type":"{type}","data":{data}}}')
        for seq, type, data, _ in events
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
            if data["kind"] == "text" and data["content"] == END:
                yield END[:1]  # what a model says is not its end
                yield END[1:]
            elif data["kind"] == "text" and data["content"]:
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
        value = decode(message)
    except ValueError:
        value = None
    except RecursionError:
        raise BadRequest("The message is too deep.", field="frame") from None
    return value if isinstance(value, dict) else {"question": message}
