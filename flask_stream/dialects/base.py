"""The contract of a dialect, which renders events for one kind of client.

A dialect has no state. Its output depends only on the run's id and the events, so it is rendered
once and sent to all viewers that have read equally far.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from ..events import Event


class Dialect(Protocol):
    """One format of a `text/event-stream`."""

    #: Its value of `?format=`.
    name: str

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        """Return the events as server-sent events in UTF-8; empty if the format leaves them out."""


# Only CRLF, CR and LF end a line of an event stream. `str.splitlines` would also split at U+2028,
# U+0085 and others.
_LINE_END = re.compile(r"\r\n|\r|\n")


def frame(data: str, *, type: str | None = None, id: str | None = None) -> str:
    """Return one server-sent event as text. `type` and `id` must not contain line ends."""
    head = (f"id: {id}\n" if id else "") + (f"event: {type}\n" if type else "")
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"{head}{lines}\n"


def event_id(run: str, event: Event) -> str | None:
    """Return the event's id, `<run>:<seq>`; None for an event that is not in the log."""
    return f"{run}:{event.seq}" if event.seq else None
