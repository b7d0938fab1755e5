"""What became of the model calls of one run, wherever in a chain or graph they were made.

A callback hears of them also where a parser hides the messages, where a node only invokes its
model, and where a branch runs in another greenlet. There it is also the one who says that the
run has been stopped.

Each call is told as a `usage` event. What a chain dispatches (`dispatch_custom_event`) is
`custom`, or `progress`. Why the last call ended is the run's finish reason.

All of it goes out when it is told, while the chain is still at work and yields nothing: by the way
on which the chain streams, where that has a place for it, else straight to whoever asked.
"""

from __future__ import annotations

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
    """Stands for something that was told, among what a chain streams."""


class RunCallbacks(BaseCallbackHandler):
    """Listens to one run. Made in the run's own task.

    `post` puts an object among what the chain streams, in the place where the caller is, or raises
    RuntimeError or LookupError where there is none: whoever reads the stream learns from `posted`
    what it stands for. `told` is what could be told to nobody yet.

    `broken` tells that an answer stopped without saying that it was over, which raises nothing.
    """

    def __init__(self, post: Callable[[StreamMarker], None] | None = None) -> None:
        self.told: deque[NewEvent] = deque()
        self.broken = False
        #: Why the last model call ended, as far as its provider has said.
        self.finish_reason: FinishReason | None = None
        self._post = post
        self._posted: dict[StreamMarker, NewEvent] = {}
        self._failures: list[BaseException] = []
        self._scope = tasks.scope()

    def _tell(self, said: NewEvent) -> None:
        if self._post is not None:
            place = StreamMarker()
            self._posted[place] = said
            try:
                return self._post(place)
            except (RuntimeError, LookupError):
                self._posted.pop(place, None)
        if self._scope.tell is not None:
            return self._scope.tell(said)
        return self.told.append(said)

    def posted(self, place: StreamMarker) -> Iterator[NewEvent]:
        """What was told there."""
        said = self._posted.pop(place, None)
        if said is not None:
            yield said

    def take(self) -> Iterator[NewEvent]:
        """What could be told to nobody since the last time."""
        while self.told:
            yield self.told.popleft()

    def rest(self) -> Iterator[NewEvent]:
        """The chain streams no more: what was posted and has not come through, and the others."""
        for place in list(self._posted):
            yield from self.posted(place)
        yield from self.take()

    def failed_with(self, error: Exception) -> bool:
        """Whether an exception that says nothing of a model, such as a JSON error, is one's own."""
        return error_code(error) is ErrorCode.CHAIN_ERROR and any(
            error is one for one in self._failures
        )

    def end(self) -> Iterator[NewEvent]:
        """The chain is through: what is left to tell. Raises Fault where an answer is broken."""
        yield from self.rest()
        if self.broken:
            raise RunFailed(ErrorCode.MODEL_ERROR)

    # A run that was stopped asks no model and no tool again, in none of its branches.

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
        self._tell(custom(name, data))

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self._failures.append(error)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generation in (one for some in response.generations for one in some):
            if isinstance(generation, ChatGeneration):
                self._answered(generation.message)
            else:
                self.finish_reason = reason_in(generation.generation_info or {})

    def _answered(self, message: Any) -> None:
        about = message.response_metadata
        self.finish_reason = finish_reason(message)
        if not is_complete(about):
            self.broken = True
        usage = getattr(message, "usage_metadata", None)
        if usage:
            cost = {
                "model": about.get("model_name") or about.get("model"),
                "input_tokens": usage["input_tokens"],
                "output_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
            }
            self._tell(("usage", encode(cost)))


def custom(name: str, value: Any) -> NewEvent:
    """A `custom` event, or `progress` for what is called so and is some.

    Of a value that JSON cannot say, what it can.
    """
    if name == "progress" and isinstance(value, dict) and {"done", "total"} <= value.keys():
        told = {name: plain(value.get(name)) for name in ("done", "total", "label")}
        return "progress", encode(told)
    return "custom", encode({"name": name, "value": plain(value)})
