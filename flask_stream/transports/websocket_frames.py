"""What a WebSocket carries: events as frames, and what a client's messages ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from websockets.frames import Frame, Opcode

from ..errors import BadRequest
from ..events import Event, decode

#: What ends an answer in the text format.
END = "<END_STREAM>"
#: How many bytes of frames are written at a time.
WRITE_SIZE = 1 << 15


def text_frame(text: str) -> bytes:
    """Return a text frame. A server's frames are not masked: all clients get the same bytes."""
    return Frame(Opcode.TEXT, text.encode("utf-8", "replace")).serialize(mask=False)


def binary_frame(data: bytes) -> bytes:
    """Return a binary frame."""
    return Frame(Opcode.BINARY, data).serialize(mask=False)


PING = Frame(Opcode.PING, b"").serialize(mask=False)


def join_frames(frames: Iterable[bytes], size: int = WRITE_SIZE) -> list[bytes]:
    """Join frames into writes of at most `size` bytes; a longer frame is a write of its own.

    Each write has a deadline, and other answers of the connection go between two of them.
    """
    writes: list[bytes] = []
    waiting: list[bytes] = []
    length = 0
    for frame in frames:
        if waiting and length + len(frame) > size:
            writes.append(b"".join(waiting))
            waiting, length = [], 0
        waiting.append(frame)
        length += len(frame)
    if waiting:
        writes.append(b"".join(waiting))
    return writes


def event_frames(run: str, events: Sequence[Event]) -> list[bytes]:
    """Return one JSON object for each event."""
    # Data is JSON already, and neither ids nor types have anything to escape.
    return join_frames(
        text_frame(f'{{"id":{_id(run, seq)},"type":"{type}","data":{data}}}')
        for seq, type, data, _ in events
    )


def text_frames(run: str, events: Sequence[Event]) -> list[bytes]:
    """Return the text of the answer, and its end."""
    return join_frames(map(text_frame, _texts(events)))


def _id(run: str, seq: int) -> str:
    return f'"{run}:{seq}"' if seq else "null"


def _texts(events: Sequence[Event]) -> Iterator[str]:
    for event in events:
        if event.type == "chunk":
            data = event.value()
            if data["kind"] == "text" and data["content"] == END:
                # The model wrote it: in two frames, no client takes it for the end.
                yield END[:1]
                yield END[1:]
            elif data["kind"] == "text" and data["content"]:
                yield data["content"]
        elif event.type == "end":
            error = event.value()["error"]
            if error:
                yield f"Error: {error['message']}"
            yield END


def parse_message(message: str | bytes) -> dict[str, Any]:
    """Return a client's message as an object; other text is a question. Raises BadRequest."""
    if isinstance(message, bytes):
        raise BadRequest("Send text, not bytes.", field="frame")
    try:
        value = decode(message)
    except ValueError:
        value = None
    except RecursionError:
        raise BadRequest("The message is nested too deeply.", field="frame") from None
    return value if isinstance(value, dict) else {"question": message}
