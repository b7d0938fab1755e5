"""What models and tools say, as events: `message_start`, `chunk`, `tool_call`, `tool_result`.

Messages of several models may come mixed, as parallel nodes of a graph stream them: they are
told apart by their ids. A tool call is told once and whole, when its last piece is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    ChatMessage,
    ToolMessage,
)
from pydantic_core import to_jsonable_python

from ..events import NewEvent, chunk, encode

logger = logging.getLogger(__name__)

_ROLES = {"ai": "assistant", "AIMessageChunk": "assistant", "human": "user"}
#: Blocks of content that a message also has as its tool calls.
_CALLS = {"tool_call", "tool_call_chunk", "invalid_tool_call"}
#: How LangChain tells a model that a person did not let a tool run. The rest is that person's.
_REJECTED = "User rejected the tool call for "


@dataclass
class _Call:
    """A tool call on its way: its arguments come as pieces of JSON text."""

    index: int | str | None
    id: str | None
    name: str = ""
    args: list[str] = field(default_factory=list)

    def told(self) -> NewEvent:
        text = "".join(self.args)
        try:
            args = json.loads(text) if text else {}
        except ValueError:
            args = text  # what the model said, though it is no JSON
        return _tool_call(self.id, self.name, args)


class Messages:
    """The messages of one run, counted `m1`, `m2`, … (or with another `prefix`)."""

    def __init__(self, prefix: str = "m") -> None:
        self._prefix = prefix
        self._number = 0
        self._ids: dict[Hashable, str] = {}
        self._current: dict[str, str] = {}
        self._calls: dict[str, list[_Call]] = {}
        #: Messages of which nothing is said yet, and how they open.
        self._silent: dict[str, NewEvent] = {}

    def text(self, text: str, kind: str = "text") -> Iterator[NewEvent]:
        """A piece of text that belongs to no message: to the one before, or to a new one."""
        if text:
            message = self._current.get("")
            if message is None:
                message = self._next("", None)
                self._silent[message] = _opening(message, "assistant", None)
            if self._silent:
                yield from self._open(message)
            yield "chunk", chunk(text, message, kind)

    def said(
        self, said: BaseMessage, node: str | None = None, scope: str = ""
    ) -> Iterator[NewEvent]:
        """A message, or a piece of one, of a node; ids are unique within their `scope`."""
        if isinstance(said, ToolMessage):
            yield from self.end()
            yield _tool_result(said)
            return
        piece = isinstance(said, BaseMessageChunk)
        message = self._ids.get((scope, said.id)) if said.id else None
        if message is None and not said.id and piece:
            message = self._current.get(scope)
        if message is None:
            message = self._next(scope, said.id)
            self._silent[message] = _opening(message, _role(said), node)
        self._current[scope] = message
        for part in self._parts(said, message):
            if self._silent:
                yield from self._open(message)
            yield part
        if message in self._calls:
            yield from self._open(message)

    def _parts(self, said: BaseMessage, message: str) -> Iterator[NewEvent]:
        for kind, text in _reasoning(said):
            yield "chunk", chunk(text, message, kind)
        if isinstance(said.content, str):
            if said.content:
                yield "chunk", chunk(said.content, message)
        elif said.content:
            yield from _blocks(said, message)
        if isinstance(said, AIMessageChunk):
            if said.tool_call_chunks:
                self._collect(message, said)
            if said.chunk_position == "last":
                yield from self._complete(message)
        elif isinstance(said, AIMessage):
            for call in (*said.tool_calls, *said.invalid_tool_calls):
                yield _tool_call(call["id"], call["name"], call["args"])

    def end(self) -> Iterator[NewEvent]:
        """No more pieces come of the messages so far: their tool calls, as far as they came."""
        for message in list(self._calls):
            yield from self._complete(message)

    def _next(self, scope: str, id: str | None) -> str:
        self._number += 1
        message = f"{self._prefix}{self._number}"
        self._current[scope] = message
        if id:
            self._ids[scope, id] = message
        return message

    def _open(self, message: str) -> Iterator[NewEvent]:
        # With what it first says: some models send a message of nothing before, or after.
        if message in self._silent:
            yield self._silent.pop(message)

    def _collect(self, message: str, said: AIMessageChunk) -> None:
        calls = self._calls.setdefault(message, [])
        for piece in said.tool_call_chunks:
            index, id = piece.get("index"), piece["id"]
            # Some servers give every call the same index, and some give none.
            same = (c for c in reversed(calls) if c.index == index and id in (None, "", c.id))
            call = next(same, None)
            if call is None:
                call = _Call(index, id)
                calls.append(call)
            call.name += piece["name"] or ""
            call.args.append(piece["args"] or "")

    def _complete(self, message: str) -> Iterator[NewEvent]:
        for call in self._calls.pop(message, ()):
            yield call.told()


def plain(value: Any) -> Any:
    """The value as JSON can say it; of what JSON cannot say, its type's name."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=lambda odd: type(odd).__name__)


def _opening(message: str, role: str, node: str | None) -> NewEvent:
    return "message_start", encode({"id": message, "role": role, "node": node})


def _role(said: BaseMessage) -> str:
    return said.role if isinstance(said, ChatMessage) else _ROLES.get(said.type, said.type)


def _tool_call(id: str | None, name: str | None, args: Any) -> NewEvent:
    return "tool_call", encode({"id": id, "name": name, "args": plain(args)})


def _tool_result(said: ToolMessage) -> NewEvent:
    # Not the artifact: it is for the program, neither for the model nor for people.
    content = plain(said.content)
    if said.status == "error" and not said.text.startswith(_REJECTED):
        # What an exception says is for the model and the operator.
        logger.warning("tool %s: failed: %s", said.name, RuntimeError(content))
        content = "The tool failed."
    result = {"id": said.tool_call_id, "name": said.name, "content": content}
    return "tool_result", encode(result | {"status": said.status})


def _reasoning(said: BaseMessage) -> Iterator[tuple[str, str]]:
    """What some models' classes put beside the content."""
    text = said.additional_kwargs.get("reasoning_content")
    if text and isinstance(text, str):
        yield "reasoning", text


def _blocks(said: BaseMessage, message: str) -> Iterator[NewEvent]:
    """A list of content: text and reasoning as chunks, an image or a source as it is."""
    aside = said.additional_kwargs.get("reasoning_content")
    blocks: list[Any] = [*said.content_blocks]
    for block in blocks:
        kind = block["type"]
        if kind == "text":
            if text := block.get("text"):
                yield "chunk", chunk(text, message)
            if notes := block.get("annotations"):
                yield "custom", encode({"name": "annotations", "value": plain(notes)})
        elif kind == "reasoning":
            reasoning = block.get("reasoning")
            if reasoning and reasoning != aside:
                yield "chunk", chunk(reasoning, message, "reasoning")
        elif kind not in _CALLS:
            yield "custom", encode({"name": kind, "value": plain(block)})
