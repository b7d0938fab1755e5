"""Events and cursors.

The data of an event is kept as JSON text. It is encoded once, when the event is produced, and sent
to all viewers as it is. The text is one line of ASCII, so line separators and lone surrogates in it
need no further escaping.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple

#: The types, in the order of the documentation. A log begins with `start` and finishes with `end`.
TYPES = (
    "start",
    "message_start",
    "chunk",
    "tool_call",
    "tool_result",
    "step",
    "state",
    "progress",
    "custom",
    "usage",
    "interrupt",
    "reset",
    "end",
)


class Event(NamedTuple):
    """One event of a log.

    `seq` counts from 1 without a gap. `data` is JSON text. `at` is when the chain produced the
    event, in whole milliseconds since the run was created.
    """

    seq: int
    type: str
    data: str
    at: int = 0

    def value(self) -> Any:
        """Return the event's data as Python objects."""
        return json.loads(self.data)


#: An event that is not in a log yet: its type, and its data as JSON text.
NewEvent = tuple[str, str]

_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encode(data: Mapping[str, Any]) -> str:
    """Return data as JSON text. Raises TypeError or ValueError for data that JSON cannot hold."""
    return _encoder.encode(data)


def decode(text: str | bytes) -> Any:
    """Parse JSON text. Raises ValueError, also for NaN and Infinity, and RecursionError."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def chunk(content: str, message: str, kind: str = "text") -> str:
    """Return the data of a `chunk` event. `message` and `kind` must need no escaping."""
    # Made for every token. This takes a tenth of the time of `encode`.
    return f'{{"content":{quote(content)},"message":"{message}","kind":"{kind}"}}'


_RUN_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_CURSOR = re.compile(r"([A-Za-z0-9_-]{16,64}):(0|[1-9][0-9]{0,15})")
_SEQ = re.compile(r"0|[1-9][0-9]{0,15}")


class Cursor(NamedTuple):
    """A position in a run's log, after the event with that seq. Its text is `<run>:<seq>`."""

    run: str
    seq: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse `<run>:<seq>`. Raises ValueError for anything else."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValueError("expected <run>:<seq>")
        return cls(match[1], int(match[2]))

    @classmethod
    def of(cls, run: str, text: str) -> Cursor:
        """Parse `<run>:<seq>`, or `<seq>` alone for `run`. Raises ValueError for anything else."""
        if _SEQ.fullmatch(text):
            return cls(run, int(text))
        return cls.parse(text)


def new_id() -> str:
    """Return a new id that cannot be guessed: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Return whether `text` can be the id of a run or a conversation."""
    return _RUN_ID.fullmatch(text) is not None
