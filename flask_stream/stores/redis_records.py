"""Encode and decode runs and conversations for Redis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from .base import Batch, Conversation, Run


def ms(seconds: float) -> int:
    """Return the seconds in whole milliseconds, rounded up, and at least 1."""
    return max(1, math.ceil(seconds * 1000))


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the hash that a script returned as a flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def fields(run: Run) -> Iterator[str | int]:
    """Return the names and values of a run's fields in turn, without those that are None."""
    for name in _FIELDS:
        value = getattr(run, name)
        if value is not None:
            yield name
            yield repr(value) if isinstance(value, float) else value


def head(batch: Batch) -> str:
    """Return the argument of `redis_append.lua` that describes a batch, without its events."""
    run, lease_token, after, events, status, started, first_chunk, answer = batch
    common = f"{run}\t{lease_token}\t{after}\t{events[-1].seq}\t{status or ''}"
    if status is None and started is None and first_chunk is None:
        return f"{common}\t"
    values = ("" if each is None else each for each in (started, first_chunk, batch.ended, answer))
    return "\t".join((common, *map(str, values)))


def to_run(id: str, fields: Mapping[bytes, bytes]) -> Run:
    """Return the run that is stored in a hash."""

    def text(name: str) -> str:
        return fields[name.encode()].decode()

    def number(name: str) -> int | None:
        value = fields.get(name.encode())
        return None if value is None else int(value)

    return Run(
        id=id,
        chain=text("chain"),
        conversation=text("conversation"),
        parent=text("parent") if b"parent" in fields else None,
        principal=text("principal"),
        input=text("input"),
        created=float(text("created")),
        status=text("status"),
        seq=int(text("seq")),
        attempt=int(text("attempt")),
        started=number("started"),
        first_chunk=number("first_chunk"),
        ended=number("ended"),
        answer=text("answer") if b"answer" in fields else None,
    )


def to_conversation(id: str, principal: str, fields: Mapping[bytes, bytes]) -> Conversation:
    """Return the conversation that is stored in a hash."""
    return Conversation(
        id=id,
        principal=principal,
        title=fields[b"title"].decode(),
        created=float(fields[b"created"]),
        updated=float(fields[b"updated"]),
    )


#: The fields of a `Run` in its hash, beside `lease_token` and `cancel`.
_FIELDS = [field.name for field in dataclasses.fields(Run) if field.name != "id"]
