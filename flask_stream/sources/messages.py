"""Messages of models and tools as events: `message_start`, `chunk`, `tool_call`, `tool_result`.

Messages of several models may be interleaved, because nodes of a graph can run in parallel. Their
ids tell them apart. A tool call becomes one event when all of its pieces have arrived.
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
#: Types of content blocks that repeat the tool calls of the message.
_CALLS = {"tool_call", "tool_call_chunk", "invalid_tool_call"}
#: The beginning of LangChain's tool result for a tool call that a person has rejected.
_REJECTED = "User rejected the tool call for "


@dataclass
class _Call:
    """An incomplete tool call. Its arguments arrive as pieces of JSON text."""

    index: int | str | None
    id: str | None
    name: str = ""
    args: list[str] = field(default_factory=list)

    def event(self) -> NewEvent:
        text = "".join(self.args)
        try:
            args = json.loads(text) if text else {}
        except ValueError:
            args = text  # the model's text, although it is not JSON
        return _tool_call(self.id, self.name, args)


class Messages:
    """The messages of one run. Their ids are `m1`, `m2`, …, or have another `prefix`."""

    def __init__(self, prefix: str = "m") -> None:
        self._prefix = prefix
        self._number = 0
        self._ids: dict[Hashable, str] = {}
        self._current: dict[str, str] = {}
        self._calls: dict[str, list[_Call]] = {}
        #: Message id → `message_start` event, for messages that have not been sent yet.
        self._unopened: dict[str, NewEvent] = {}

    def add_text(self, text: str, kind: str = "text") -> Iterator[NewEvent]:
        """Yield the events of a text without a message. It extends the previous text, if any."""
        if text:
            message_id = self._current.get("")
            if message_id is None:
                message_id = self._new_message("", None)
                self._unopened[message_id] = _message_start(message_id, "assistant", None)
            if self._unopened:
                yield from self._start(message_id)
            yield "chunk", chunk(text, message_id, kind)

    def add(
        self, message: BaseMessage, node: str | None = None, scope: str = ""
    ) -> Iterator[NewEvent]:
        """Yield the events of a message or message chunk from a node.

        Ids of messages are unique within their `scope`.
        """
        if isinstance(message, ToolMessage):
            yield from self.end()
            yield _tool_result(message)
            return
        piece = isinstance(message, BaseMessageChunk)
        message_id = self._ids.get((scope, message.id)) if message.id else None
        if message_id is None and not message.id and piece:
            message_id = self._current.get(scope)
        if message_id is None:
            message_id = self._new_message(scope, message.id)
            self._unopened[message_id] = _message_start(message_id, _role(message), node)
        self._current[scope] = message_id
        for part in self._parts(message, message_id):
            if self._unopened:
                yield from self._start(message_id)
            yield part
        if message_id in self._calls:
            yield from self._start(message_id)

    def _parts(self, message: BaseMessage, message_id: str) -> Iterator[NewEvent]:
        for kind, text in _reasoning(message):
            yield "chunk", chunk(text, message_id, kind)
        if isinstance(message.content, str):
            if message.content:
                yield "chunk", chunk(message.content, message_id)
        elif message.content:
            yield from _blocks(message, message_id)
        if isinstance(message, AIMessageChunk):
            if message.tool_call_chunks:
                self._collect(message_id, message)
            if message.chunk_position == "last":
                yield from self._complete(message_id)
        elif isinstance(message, AIMessage):
            for call in (*message.tool_calls, *message.invalid_tool_calls):
                yield _tool_call(call["id"], call["name"], call["args"])

    def end(self) -> Iterator[NewEvent]:
        """Yield the tool calls that are still incomplete, because no more pieces will arrive."""
        for message_id in list(self._calls):
            yield from self._complete(message_id)

    def _new_message(self, scope: str, id: str | None) -> str:
        self._number += 1
        message_id = f"{self._prefix}{self._number}"
        self._current[scope] = message_id
        if id:
            self._ids[scope, id] = message_id
        return message_id

    def _start(self, message_id: str) -> Iterator[NewEvent]:
        # Deferred until there is content: some models send an empty message before or after.
        if message_id in self._unopened:
            yield self._unopened.pop(message_id)

    def _collect(self, message_id: str, message: AIMessageChunk) -> None:
        calls = self._calls.setdefault(message_id, [])
        for piece in message.tool_call_chunks:
            index, id = piece.get("index"), piece["id"]
            # Some servers give every call the same index, and some give none.
            same = (c for c in reversed(calls) if c.index == index and id in (None, "", c.id))
            call = next(same, None)
            if call is None:
                call = _Call(index, id)
                calls.append(call)
            call.name += piece["name"] or ""
            call.args.append(piece["args"] or "")

    def _complete(self, message_id: str) -> Iterator[NewEvent]:
        for call in self._calls.pop(message_id, ()):
            yield call.event()


def plain(value: Any) -> Any:
    """Return the value as JSON data. Replace what JSON cannot represent by its type's name."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=lambda odd: type(odd).__name__)


def _message_start(message_id: str, role: str, node: str | None) -> NewEvent:
    return "message_start", encode({"id": message_id, "role": role, "node": node})


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    return _ROLES.get(message.type, message.type)


def _tool_call(id: str | None, name: str | None, args: Any) -> NewEvent:
    return "tool_call", encode({"id": id, "name": name, "args": plain(args)})


def _tool_result(message: ToolMessage) -> NewEvent:
    # Without the artifact, which is meant for the program, not for the model or for users.
    content = plain(message.content)
    if message.status == "error" and not message.text.startswith(_REJECTED):
        # Only the model and the operator may see the text of the exception.
        logger.warning("tool %s: failed: %s", message.name, RuntimeError(content))
        content = "The tool failed."
    result = {"id": message.tool_call_id, "name": message.name, "content": content}
    return "tool_result", encode(result | {"status": message.status})


def _reasoning(message: BaseMessage) -> Iterator[tuple[str, str]]:
    """Yield the reasoning that some chat model classes store outside of the content."""
    text = message.additional_kwargs.get("reasoning_content")
    if text and isinstance(text, str):
        yield "reasoning", text


def _blocks(message: BaseMessage, message_id: str) -> Iterator[NewEvent]:
    """Yield content blocks: text and reasoning as chunks, others, such as images, as `custom`."""
    separate = message.additional_kwargs.get("reasoning_content")
    blocks: list[Any] = [*message.content_blocks]
    for block in blocks:
        kind = block["type"]
        if kind == "text":
            if text := block.get("text"):
                yield "chunk", chunk(text, message_id)
            if annotations := block.get("annotations"):
                yield "custom", encode({"name": "annotations", "value": plain(annotations)})
        elif kind == "reasoning":
            reasoning = block.get("reasoning")
            if reasoning and reasoning != separate:
                yield "chunk", chunk(reasoning, message_id, "reasoning")
        elif kind not in _CALLS:
            yield "custom", encode({"name": kind, "value": plain(block)})
