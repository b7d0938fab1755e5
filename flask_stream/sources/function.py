"""The source for functions that yield text, messages or events.

A function takes the question. If its parameter is named `input` or annotated as `Input`, it takes
the whole `Input` instead. An event is a pair of its type and its data:

    @stream.chain("count")
    def count(question):
        for number in range(1, 4):
            yield "progress", {"done": number, "total": 3}
            yield f"{number} "

The function, or callable object, may have these attributes:

`check(value)` is called with a run's input before the run starts, and raises BadRequest if it is
invalid. Without it, a function of the question accepts only questions, and one of the whole input
accepts anything.
`check_history(value, earlier)` is called after it, and raises BadRequest if the input cannot follow
the turns that `earlier()` returns.
`turns` is the most turns in `input.history` and `earlier()`, 50 by default.
`longest` is the most characters in all texts of an input object, by default those of a question.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from ..errors import BadRequest
from ..events import NewEvent, encode
from .base import Input, Source, Turn
from .finish_reasons import FinishReason, finish_reason, states_reason
from .messages import Messages, plain

_STATUSES = {"step": ("start", "done", "failed"), "tool_result": ("success", "error")}
_KINDS = ("text", "reasoning")
#: The fields of the events that a function may yield. Those with a default are optional.
_NEEDED = object()
_FIELDS: dict[str, dict[str, Any]] = {
    "chunk": {"content": _NEEDED, "kind": "text"},
    "tool_call": {"id": _NEEDED, "name": _NEEDED, "args": _NEEDED},
    "tool_result": {"id": _NEEDED, "name": None, "content": _NEEDED, "status": "success"},
    "step": {"node": _NEEDED, "status": _NEEDED},
    "state": {"values": _NEEDED},
    "progress": {"done": _NEEDED, "total": _NEEDED, "label": None},
    "custom": {"name": _NEEDED, "value": None},
    "usage": {
        "model": None,
        "input_tokens": _NEEDED,
        "output_tokens": _NEEDED,
        "total_tokens": _NEEDED,
    },
    "interrupt": {"id": _NEEDED, "value": None},
}


class FunctionSource(Source):
    """Calls a function that yields pieces, or returns a whole text."""

    def __init__(self, function: Callable[..., Iterable[Any]]) -> None:
        self._function = function
        self._whole = _takes_input(function)
        self.turns = getattr(function, "turns", self.turns)
        self.longest = getattr(function, "longest", self.longest)

    def check(self, value: dict[str, Any]) -> None:
        # Only the function itself can validate a whole input.
        own = getattr(self._function, "check", None)
        if own is not None:
            own(value)
        elif not self._whole and value.keys() != {"question"}:
            raise BadRequest("This chain takes a question.", field="input")

    def check_history(self, value: dict[str, Any], earlier: Callable[[], Sequence[Turn]]) -> None:
        own = getattr(self._function, "check_history", None)
        if own is not None:
            own(value, earlier)

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        messages = Messages()
        said = self._function(input if self._whole else input.question)
        pieces = [said] if isinstance(said, str) else said
        reason: FinishReason | None = None
        try:
            for piece in pieces:
                if isinstance(piece, str):
                    yield from messages.add_text(piece)
                elif isinstance(piece, BaseMessage):
                    yield from messages.add(piece)
                    if states_reason(piece.response_metadata):
                        reason = finish_reason(piece)
                else:
                    yield from _event(piece, messages)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        yield from messages.end()
        return reason


def _takes_input(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function written in C has no signature
        return False
    first = next(iter(parameters), None)
    if first is None or first.name == "input":
        return first is not None
    kind = first.annotation  # text, in a module with postponed annotations
    return kind is Input or (isinstance(kind, str) and kind.rpartition(".")[2] == "Input")


def _event(piece: Any, messages: Messages) -> Iterator[NewEvent]:
    """Yield the event of a pair. Raises TypeError if a function may not yield it."""
    if not (isinstance(piece, tuple) and len(piece) == 2 and isinstance(piece[1], dict)):
        kind = type(piece).__name__
        raise TypeError(f"a chain function yields text, messages or (type, data), not {kind}")
    type_, data = piece
    fields = _FIELDS.get(type_) if isinstance(type_, str) else None
    if fields is None:
        raise TypeError(f"a chain function yields {', '.join(_FIELDS)}, not {type_!r}")
    if unknown := data.keys() - fields.keys():
        raise TypeError(f"{type_} has no {', '.join(map(str, unknown))}")
    if missing := [name for name, usual in fields.items() if usual is _NEEDED and name not in data]:
        raise TypeError(f"{type_} needs {', '.join(missing)}")
    whole = {name: data.get(name, usual) for name, usual in fields.items()}
    if wrong := [name for name, value in whole.items() if not _fits(type_, name, value)]:
        raise TypeError(f"{type_} has an invalid {wrong[0]}: {whole[wrong[0]]!r}")
    if type_ == "chunk":
        yield from messages.add_text(whole["content"], whole["kind"])
    else:
        yield type_, encode(plain(whole))


def _fits(type: str, name: str, value: Any) -> bool:
    match name:
        case "status":
            return value in _STATUSES[type]
        case "kind":
            return value in _KINDS
        case "done" | "total":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "input_tokens" | "output_tokens" | "total_tokens":
            return isinstance(value, int) and not isinstance(value, bool)
        case "name":
            return isinstance(value, str) or (value is None and type == "tool_result")
        case "node":
            return isinstance(value, str)
        case "content":
            return isinstance(value, str) or type == "tool_result"
        case "label" | "model":
            return value is None or isinstance(value, str)
        case "values":
            return isinstance(value, dict)
        case _:
            return True
