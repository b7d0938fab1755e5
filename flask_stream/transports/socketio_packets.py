"""What Socket.IO carries: events as packets, and what a client's messages ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import BadRequest
from ..events import Event, encode

#: Of Socket.IO's protocol: an event, in the usual namespace.
_EVENT = "2"
#: What these types call `id` themselves: here that is the event's.
_OWN_ID = {
    "message_start": "message_id",
    "tool_call": "tool_call_id",
    "tool_result": "tool_call_id",
    "interrupt": "interrupt_id",
}


def packet(name: str, data: str) -> str:
    """An event of that name, with data that is JSON."""
    return f'{_EVENT}["stream_{name}",{data}]'


def packets(run: str, events: Sequence[Event], full: Callable[[], str]) -> list[str]:
    """A packet for each event; `full` is asked for the whole answer at a good end."""
    return [_packet(run, event, full) for event in events]


def _packet(run: str, event: Event, full: Callable[[], str]) -> str:
    seq, type, data, _ = event
    id = f'"{run}:{seq}"' if seq else "null"
    if type == "end":
        end = event.value()
        error = end["error"]
        if error is not None:
            failure = {
                "error": error["message"],
                "code": error["code"],
                "retryable": error["retryable"],
                "finish_reason": end.get("finish_reason"),
                "run": run,
            }
            return packet("error", _with(id, encode(failure)))
        ending = {
            "full_response": full(),
            "status": end["status"],
            "finish_reason": end.get("finish_reason"),
            "run": run,
        }
        return packet("end", _with(id, encode(ending)))
    if type in _OWN_ID:
        value = event.value()
        data = encode({_OWN_ID[type]: value.pop("id", None)} | value)
    return packet(type, _with(id, data))


def _with(id: str, data: str) -> str:
    return f'{{"id":{id}}}' if data == "{}" else f'{{"id":{id},{data[1:]}'


def answer(events: Iterator[Event]) -> str:
    """All that `stream_chunk` has said of the answer since it was begun, in one text."""
    said: list[str] = []
    for event in events:
        if event.type == "reset":
            said.clear()
        elif event.type == "chunk":
            data = event.value()
            if data["kind"] == "text":
                said.append(data["content"])
    return "".join(said)


def understood(args: Sequence[Any], text: str) -> dict[str, Any]:
    """What a client's message says; a text alone is its field `text`. Raises BadRequest."""
    if not args:
        return {}
    if len(args) == 1 and isinstance(args[0], dict):
        return dict(args[0])
    if len(args) == 1 and isinstance(args[0], str):
        return {text: args[0]}
    raise BadRequest("Send a text or an object.", field=text)


def told(data: dict[str, Any]) -> str:
    """Data that is of no run's log."""
    return json.dumps({"id": None} | data)
