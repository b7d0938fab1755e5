"""`text`: the text of the answer and how it ended, for `curl` and for minimal pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..events import Event
from .base import event_id, frame


class Text:
    """Renders text as unnamed messages, then `event: end` with the status.

    `event: error` with a sentence comes before the end of a failed run. `event: reset` tells the
    client to discard the text so far.
    """

    name = "text"

    def frames(self, run: str, events: Sequence[Event]) -> bytes:
        # A lone surrogate is valid in JSON but not in UTF-8: it becomes a question mark.
        return "".join(self._frames(run, events)).encode("utf-8", "replace")

    def _frames(self, run: str, events: Sequence[Event]) -> Iterator[str]:
        for event in events:
            id = event_id(run, event)
            if event.type == "chunk":
                data = event.value()
                if data["kind"] == "text":
                    yield frame(data["content"], id=id)
            elif event.type == "reset":
                yield frame(event.value()["reason"], type="reset", id=id)
            elif event.type == "end":
                data = event.value()
                if data["error"]:
                    # Without an id: a client that reconnects here gets this and the end again.
                    yield frame(data["error"]["message"], type="error")
                yield frame(data["status"], type="end", id=id)
            elif event.type == "reconnect":
                yield frame(event.data, type="reconnect")
            elif event.type == "unauthorized":
                yield frame(event.value()["message"], type="error")
