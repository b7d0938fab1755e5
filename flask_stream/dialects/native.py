"""`native`: every event with its JSON data. Chunks are unnamed, all others are named by type."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Event
from .base import event_id, frame


class Native:
    """Renders the whole log. An `EventSource` gets the chunks, and only them, by `onmessage`."""

    name = "native"

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        # Chunks skip `frame`: there is one per token, and JSON text has no line ends.
        return "".join(
            [
                f"id: {run}:{seq}\ndata: {data}\n\n"
                if type == "chunk"
                else frame(data, type=type, id=event_id(run, Event(seq, type, data, at)))
                for seq, type, data, at in events
            ]
        ).encode("ascii")
