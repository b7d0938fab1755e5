"""Generator functions: what they yield is text, messages, or events of their own.

A function takes the question, or, where its parameter is called `input` or annotated as `Input`,
all that the run was started with. An event is a pair of its type and its data:

    @stream.chain("count")
    def count(question):
        for number in range(1, 4):
            yield "progress", {"done": number, "total": 3}
            yield f"{number} "

A function, or an object that is called like one, may have attributes that are asked, too:

`check(value)` is called with a run's input before the run is started, and raises BadRequest for
one that the function cannot take. Without it, a function that takes the question takes nothing
else, and one that takes all takes anything.
`check_history(value, earlier)` is called after it, and raises BadRequest for an input that cannot
come after the turns that `earlier()` gives.
`turns` is how many turns `input.history` and `earlier()` have at most, the last ones: 50, if it is
not there.
`longest` is how many characters the texts of an input which is an object may have together: as
many as a question, if it is not there.
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
#: The fields of the events that a function may say, in order; those with a value may be missing.
_MUST = object()
_FIELDS: dict[str, dict[str, Any]] = {
    "chunk": {"content": _MUST, "kind": "text"},
    "tool_call": {"id": _MUST, "name": _MUST, "args": _MUST},
    "tool_result": {"id": _MUST, "name": None, "content": _MUST, "status": "success"},
    "step": {"node": _MUST, "status": _MUST},
    "state": {"values": _MUST},
    "progress": {"done": _MUST, "total": _MUST, "label": None},
    "custom": {"name": _MUST, "value": None},
    "usage": {"model": None, "input_tokens": _MUST, "output_tokens": _MUST, "total_tokens": _MUST},
    "interrupt": {"id": _MUST, "value": None},
}


class FunctionSource(Source):
    """Asks a function that yields, or returns a whole text."""

    def __init__(self, function: Callable[..., Iterable[Any]]) -> None:
        self._function = function
        self._whole = _takes_input(function)
        self.turns = getattr(function, "turns", self.turns)
        self.longest = getattr(function, "longest", self.longest)

    def check(self, value: dict[str, Any]) -> None:
        # A function that takes it all knows best what it can take, and may say so.
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
                    yield from messages.text(piece)
                elif isinstance(piece, BaseMessage):
                    yield from messages.said(piece)
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
    except (TypeError, ValueError):  # it is written in C, and does not say
        return False
    first = next(iter(parameters), None)
    if first is None or first.name == "input":
        return first is not None
    kind = first.annotation  # text, where the function's module postpones what annotations mean
    return kind is Input or (isinstance(kind, str) and kind.rpartition(".")[2] == "Input")


def _event(piece: Any, messages: Messages) -> Iterator[NewEvent]:
    """The event that a pair is. Raises TypeError for what is none that a function may say."""
    if not (isinstance(piece, tuple) and len(piece) == 2 and isinstance(piece[1], dict)):
        kind = type(piece).__name__
        raise TypeError(f"a chain function yields text, messages or (type, data), not {kind}")
    type_, data = piece
    fields = _FIELDS.get(type_) if isinstance(type_, str) else None
    if fields is None:
        raise TypeError(f"a chain function says {', '.join(_FIELDS)}, not {type_!r}")
    if unknown := data.keys() - fields.keys():
        raise TypeError(f"{type_} has no {', '.join(map(str, unknown))}")
    if missing := [name for name, usual in fields.items() if usual is _MUST and name not in data]:
        raise TypeError(f"{type_} needs {', '.join(missing)}")
    whole = {name: data.get(name, usual) for name, usual in fields.items()}
    if wrong := [name for name, value in whole.items() if not _fits(type_, name, value)]:
        raise TypeError(f"{type_} has a {wrong[0]} that cannot be: {whole[wrong[0]]!r}")
    if type_ == "chunk":
        yield from messages.text(whole["content"], whole["kind"])
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
