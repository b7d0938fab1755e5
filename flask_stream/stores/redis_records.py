"""How runs and conversations are written in Redis, and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from .base import Batch, Conversation, Run


def ms(seconds: float) -> int:
    """Whole milliseconds: no fewer than that many seconds, and at least one."""
    return max(1, math.ceil(seconds * 1000))


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash, from a script's answer."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def fields(run: Run) -> Iterator[str | int]:
    """Names and values in turn. What is None is left out."""
    for name in _FIELDS:
        value = getattr(run, name)
        if value is not None:
            yield name
            yield repr(value) if isinstance(value, float) else value


def head(batch: Batch) -> str:
    """Return what `redis_append.lua` is told of a batch, beside its events."""
    run, lease_token, after, events, status, started, first_chunk, answer = batch
    plain = f"{run}\t{lease_token}\t{after}\t{events[-1].seq}\t{status or ''}"
    if status is None and started is None and first_chunk is None:
        return f"{plain}\t"
    values = ("" if each is None else each for each in (started, first_chunk, batch.ended, answer))
    return "\t".join((plain, *map(str, values)))


def to_run(id: str, fields: Mapping[bytes, bytes]) -> Run:
    """A run, from its hash."""

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
    """A conversation, from its hash."""
    return Conversation(
        id=id,
        principal=principal,
        title=fields[b"title"].decode(),
        created=float(fields[b"created"]),
        updated=float(fields[b"updated"]),
    )


#: What is kept of a run beside its id, its lease_token, and whether it is to be cancelled.
_FIELDS = [field.name for field in dataclasses.fields(Run) if field.name != "id"]
