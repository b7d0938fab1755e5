"""`text`: the chunks' text alone, then how it ended: for `curl` and for the smallest page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..events import Event
from .base import frame, place


class Text:
    """Unnamed messages hold text; `event: error` holds a sentence; `event: end` the status.

    `event: reset` says that what was said so far is to be forgotten.
    """

    name = "text"

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        # A lone surrogate, which JSON can carry and UTF-8 cannot, becomes a question mark.
        return "".join(self._frames(run, events)).encode("utf-8", "replace")

    def _frames(self, run: str, events: Sequence[Event]) -> Iterator[str]:
        for event in events:
            id = place(run, event)
            if event.type == "chunk":
                data = event.value()
                if data["kind"] == "text":
                    yield frame(data["content"], id=id)
            elif event.type == "reset":
                yield frame(event.value()["reason"], type="reset", id=id)
            elif event.type == "end":
                data = event.value()
                if data["error"]:
                    # Without an id: it shares its place with the end that follows it.
                    yield frame(data["error"]["message"], type="error")
                yield frame(data["status"], type="end", id=id)
            elif event.type == "reconnect":
                yield frame(event.data, type="reconnect")
            elif event.type == "unauthorized":
                yield frame(event.value()["message"], type="error")
