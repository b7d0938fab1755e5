"""What a dialect is: it writes events as one kind of client wants to read them.

A dialect has no state. What it makes of some events depends on the run's id and these events
alone, so it is made once and sent to every viewer who is at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from ..events import Event


class Dialect(Protocol):
    """One way to write a log on a `text/event-stream`."""

    #: What `?format=` calls it.
    name: str

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        """The events as server-sent events, UTF-8; empty when this dialect says nothing of them."""


# CRLF, CR and LF end a line of an event stream, and nothing else does: `str.splitlines` would
# also split at U+2028, U+0085 and others.
_LINE_END = re.compile(r"\r\n|\r|\n")


def frame(data: str, *, type: str | None = None, id: str | None = None) -> str:
    """One server-sent event, as text. `type` and `id` are ours and hold no line end."""
    head = (f"id: {id}\n" if id else "") + (f"event: {type}\n" if type else "")
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"{head}{lines}\n"


def place(run: str, event: Event) -> str | None:
    """The event's id, `<run>:<seq>`; None for an event that has no place in the log."""
    return f"{run}:{event.seq}" if event.seq else None
