"""The answer of a run: the text of its messages, assembled from its `chunk` events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quote

from ..events import Event
from ..stores.base import Run, Store
from .log_reader import PAGE

_HEAD = '{"content":"'
_TAIL = re.compile(r'","message":"([^"\\]*)","kind":"text"\}')
_NOT_TEXT = ('"kind":"reasoning"}', '"kind":"refusal"}')


class AnswerFold:
    """Assembles the answer of a run from its events, while they are produced.

    `complete` is whether the run's events are known from the first one, or from a `reset`. Without
    them, there is no answer.
    """

    __slots__ = ("_cut", "_messages", "_parts", "_tail", "complete")

    def __init__(self, complete: bool = True) -> None:
        self.complete = complete
        # The parts of each message, by its id: JSON strings without their quotes.
        self._messages: dict[str, list[str]] = {}
        self._parts: list[str] = []
        # What the data of the current message's chunks ends with, as `events.chunk` makes them. So
        # the text can be cut out without parsing JSON for every token.
        self._tail = "\n"
        self._cut = 0

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            if event[1] == "chunk":
                data = event[2]
                if data.endswith(self._tail):
                    self._parts.append(data[12 : self._cut])
                else:
                    self._add_other(data)
            elif event[1] == "reset":
                self._messages = {}
                self._tail = "\n"
                self.complete = True

    def _add_other(self, data: str) -> None:
        """Add a chunk of another message, or one that `events.chunk` did not make."""
        if data.endswith(_NOT_TEXT):
            return
        tail = data[data.rfind('","message":"') :]
        match = _TAIL.fullmatch(tail)
        if match and data.startswith(_HEAD):
            self._tail, self._cut = tail, -len(tail)
            self._parts = self._messages.setdefault(match[1], [])
            self._parts.append(data[12 : self._cut])
            return
        value = json.loads(data)
        if value["kind"] == "text":
            parts = self._messages.setdefault(value["message"], [])
            parts.append(quote(value["content"])[1:-1])

    def json(self) -> str | None:
        """Return the answer as a JSON string, or None if these events do not determine it."""
        if not self.complete:
            return None
        text = "\\n\\n".join(["".join(parts) for parts in self._messages.values()])
        try:
            json.loads(f'"{text}"')
        except ValueError:
            # A chunk with unusual fields was cut in the wrong place and left a quote in the text.
            # The log must be parsed instead.
            return None
        return f'"{text}"'


def answer_of(store: Store, run: Run) -> str:
    """Return the answer of a run: the text of its messages, separated by empty lines.

    The log is read only if the answer is not stored with the run. Raises StoreError.
    """
    if run.answer is not None:
        return str(json.loads(run.answer))
    messages: dict[str, list[str]] = {}
    after = 0
    while events := store.read(run.id, after, PAGE):
        after = events[-1].seq
        for event in events:
            if event.type == "chunk":
                data = event.value()
                if data["kind"] == "text":
                    messages.setdefault(data["message"], []).append(data["content"])
            elif event.type == "reset":
                messages.clear()
    return "\n\n".join("".join(parts) for parts in messages.values())
