"""A callback handler that observes the model calls of one run, anywhere in a chain or graph.

It is called even if a parser hides the messages, if a node only invokes its model, or if a branch
runs in another greenlet. It also raises in a run that has been stopped.

Each model call becomes a `usage` event. What a chain dispatches (`dispatch_custom_event`) becomes
`custom` or `progress`. The finish reason of the last call is that of the run.

Events are sent at once, even while the chain works and yields nothing: in the chain's own stream
where it has a way to do that, else directly to the run.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, LLMResult

from ..concurrency import tasks
from ..errors import ErrorCode, RunFailed
from ..events import NewEvent, encode
from .error_codes import error_code
from .finish_reasons import FinishReason, finish_reason, is_complete, reason_in
from .messages import plain


class StreamMarker:
    """Marks the position of an event in what a chain streams."""


class RunCallbacks(BaseCallbackHandler):
    """The callbacks of one run. Create it in the run's own task.

    `post` puts a marker into the chain's stream at the caller's position, or raises RuntimeError or
    LookupError if there is no stream. `take_posted` returns the event of a marker. `pending` holds
    the events that could not be sent yet.

    `broken` is true after an answer that stopped without a finish reason, which raises nothing.
    """

    def __init__(self, post: Callable[[StreamMarker], None] | None = None) -> None:
        self.pending: deque[NewEvent] = deque()
        self.broken = False
        #: Why the last model call ended, as far as its provider has said.
        self.finish_reason: FinishReason | None = None
        self._post = post
        self._posted: dict[StreamMarker, NewEvent] = {}
        self._failures: list[BaseException] = []
        self._scope = tasks.scope()

    def _send(self, event: NewEvent) -> None:
        if self._post is not None:
            marker = StreamMarker()
            self._posted[marker] = event
            try:
                return self._post(marker)
            except (RuntimeError, LookupError):
                self._posted.pop(marker, None)
        if self._scope.emit is not None:
            return self._scope.emit(event)
        return self.pending.append(event)

    def take_posted(self, marker: StreamMarker) -> Iterator[NewEvent]:
        """Yield the event of this marker, once."""
        event = self._posted.pop(marker, None)
        if event is not None:
            yield event

    def take_pending(self) -> Iterator[NewEvent]:
        """Yield the events that could not be sent yet."""
        while self.pending:
            yield self.pending.popleft()

    def drain(self) -> Iterator[NewEvent]:
        """Yield all events that are left, after the chain's stream has ended."""
        for marker in list(self._posted):
            yield from self.take_posted(marker)
        yield from self.take_pending()

    def failed_with(self, error: Exception) -> bool:
        """Return whether a model raised this exception, although its type does not say so."""
        return error_code(error) is ErrorCode.CHAIN_ERROR and any(
            error is failure for failure in self._failures
        )

    def end(self) -> Iterator[NewEvent]:
        """Yield the events that are left. Raises RunFailed if an answer was broken off."""
        yield from self.drain()
        if self.broken:
            raise RunFailed(ErrorCode.MODEL_ERROR)

    # A stopped run must not call another model or tool, in any of its branches.

    def on_chain_start(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_tool_start(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_retriever_start(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_llm_start(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        self._scope.check()

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self._scope.check()
        self._send(custom(name, data))

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self._failures.append(error)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generation in itertools.chain.from_iterable(response.generations):
            if isinstance(generation, ChatGeneration):
                self._record(generation.message)
            else:
                self.finish_reason = reason_in(generation.generation_info or {})

    def _record(self, message: Any) -> None:
        metadata = message.response_metadata
        self.finish_reason = finish_reason(message)
        if not is_complete(metadata):
            self.broken = True
        usage = getattr(message, "usage_metadata", None)
        if usage:
            cost = {
                "model": metadata.get("model_name") or metadata.get("model"),
                "input_tokens": usage["input_tokens"],
                "output_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
            }
            self._send(("usage", encode(cost)))


def custom(name: str, value: Any) -> NewEvent:
    """Return a `custom` event, or `progress` if it has that name and those fields.

    What JSON cannot represent is replaced by its type's name.
    """
    if name == "progress" and isinstance(value, dict) and {"done", "total"} <= value.keys():
        fields = {name: plain(value.get(name)) for name in ("done", "total", "label")}
        return "progress", encode(fields)
    return "custom", encode({"name": name, "value": plain(value)})
