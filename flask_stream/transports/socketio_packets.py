"""What Socket.IO carries: events as packets, and what a client's events ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import BadRequest
from ..events import Event, encode

#: Socket.IO's packet type for an event in the namespace `/`.
_EVENT = "2"
#: The name for the `id` that these types have in their data: `id` is the event's own.
_OWN_ID = {
    "message_start": "message_id",
    "tool_call": "tool_call_id",
    "tool_result": "tool_call_id",
    "interrupt": "interrupt_id",
}


def packet(name: str, data: str) -> str:
    """Return the packet of the event `stream_<name>`; `data` is JSON."""
    return f'{_EVENT}["stream_{name}",{data}]'


def packets(run: str, events: Sequence[Event], full: Callable[[], str]) -> list[str]:
    """Return a packet for each event. `full` returns the whole answer, for `stream_end`."""
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
    """Return the text of all `stream_chunk` events since the answer began, or began again."""
    texts: list[str] = []
    for event in events:
        if event.type == "reset":
            texts.clear()
        elif event.type == "chunk":
            data = event.value()
            if data["kind"] == "text":
                texts.append(data["content"])
    return "".join(texts)


def parse_arguments(args: Sequence[Any], text_field: str) -> dict[str, Any]:
    """Return a client's event as an object; a text is its `text_field`. Raises BadRequest."""
    if not args:
        return {}
    if len(args) == 1 and isinstance(args[0], dict):
        return dict(args[0])
    if len(args) == 1 and isinstance(args[0], str):
        return {text_field: args[0]}
    raise BadRequest("Send a text or an object.", field=text_field)


def notice(data: dict[str, Any]) -> str:
    """Return the JSON of what is not in a run's log."""
    return json.dumps({"id": None} | data)
