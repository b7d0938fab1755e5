"""`native`: every event with its JSON data; chunks unnamed, all others named by their type."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Event
from .base import frame, place


class Native:
    """Everything that is in the log, for clients of our own and for anybody's `onmessage`."""

    name = "native"

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        # Written out for chunks, of which there is one per token: JSON has no line end in it.
        return "".join(
            [
                f"id: {run}:{seq}\ndata: {data}\n\n"
                if type == "chunk"
                else frame(data, type=type, id=place(run, Event(seq, type, data)))
                for seq, type, data in events
            ]
        ).encode("ascii")
