"""Events and cursors: what a log is made of.

An event's data is kept as the JSON text that it is sent as. It is encoded once, when the chain
says it, however many viewers read it however often. The text is ASCII on one line: no reader
has to escape a line separator or a lone surrogate again.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple

#: The types, in the order of the README's table; `start` is first and `end` is last in a log.
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
    """One entry of a log.

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


#: An event before it has a place in a log: its type, and its data as JSON text.
NewEvent = tuple[str, str]

_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encode(data: Mapping[str, Any]) -> str:
    """JSON text for an event. Raises TypeError or ValueError for what JSON cannot say."""
    return _encoder.encode(data)


def decode(text: str | bytes) -> Any:
    """What JSON text says; NaN and its like are none. Raises ValueError, and RecursionError."""
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def chunk(content: str, message: str, kind: str = "text") -> str:
    """The data of a `chunk` event. `message` and `kind` are ours and need no quoting."""
    # The one event that is made per token: a tenth of what the encoder above would cost.
    return f'{{"content":{quote(content)},"message":"{message}","kind":"{kind}"}}'


_RUN_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_CURSOR = re.compile(r"([A-Za-z0-9_-]{16,64}):(0|[1-9][0-9]{0,15})")
_SEQ = re.compile(r"0|[1-9][0-9]{0,15}")


class Cursor(NamedTuple):
    """A place in a run's log, written `<run>:<seq>`: after the event with that seq."""

    run: str
    seq: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read `<run>:<seq>`. Raises ValueError for anything else."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValueError("not <run>:<seq>")
        return cls(match[1], int(match[2]))

    @classmethod
    def of(cls, run: str, text: str) -> Cursor:
        """Read `<run>:<seq>` or a bare `<seq>` of `run`. Raises ValueError for anything else."""
        if _SEQ.fullmatch(text):
            return cls(run, int(text))
        return cls.parse(text)


def new_id() -> str:
    """An id that nobody can guess: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a run or a conversation."""
    return _RUN_ID.fullmatch(text) is not None
