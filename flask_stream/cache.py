"""Answers asked twice: a run that reads what an earlier run has said, instead of asking the chain.

The earlier one may still be under way; then both go on together. It is a run of its own all the
same, with its own log, owner and Stop. Should the one that it reads not come to a good end, it
forgets what it has shown and asks for itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from hashlib import sha256
from typing import Any

from .errors import Code
from .events import Said, encode
from .sources.base import Input, Source, Turn
from .stores.base import Run
from .tail import Reader

#: What an earlier run said that this one does not say: its own frame, what it has cost, and what
#: it wanted to know.
_OWN = {"start", "end", "usage", "interrupt"}
#: Seconds between two looks whether there is anything new to read.
_WAIT = 1.0


def cache_key(chain: str, version: str, who: str, input: str, history: Sequence[Turn]) -> str:
    """The same for the same question, to the same chain, after the same history, of the same."""
    whole = json.dumps([chain, version, who, input, [list(turn) for turn in history]])
    return f"answer:{sha256(whole.encode()).hexdigest()}"


class Replay:
    """A source that reads another run, and asks `source` if that one ends badly."""

    def __init__(self, read: Callable[[Run], Reader], run: Run, source: Source) -> None:
        self._read = read
        self._run = run
        self._source = source

    def check(self, value: dict[str, Any]) -> None:
        self._source.check(value)

    def stream(self, input: Input) -> Generator[Said, None, None]:
        reader = self._read(self._run)
        said = False
        try:
            while True:
                shared = reader.take()
                if shared is None:
                    reader.wait(_WAIT)
                    continue
                for event in shared.events:
                    if event.type not in _OWN:
                        said = True
                        yield event.type, event.data
                if shared.ended:
                    status = shared.events[-1].value()["status"]
                    break
        finally:
            reader.close()
        if status == "done":
            yield "custom", encode({"name": "cached", "value": True})
            return
        if said:
            yield "reset", encode({"attempt": 1, "reason": Code.MODEL_ERROR})
        yield from self._source.stream(input)
