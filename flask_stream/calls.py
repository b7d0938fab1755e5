"""What became of the model calls of one run, wherever in a chain or graph they were made.

A callback hears of them also where a parser hides the messages, where a node only invokes its
model, and where a branch runs in another greenlet. There it is also the one who says that the
run has been stopped.

Each call is told as a `usage` event. An answer that the model cut off at its token limit is told
as well, once per call: `custom`, `{"name": "cut", "value": "max_tokens"}`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, LLMResult

from . import tasks
from .errors import Code, Fault
from .events import Said, encode
from .faults import code_of
from .messages import plain

#: How an answer says that it is over: in chat completions, and in OpenAI's responses.
_ENDINGS = {"finish_reason", "status"}
#: Where providers say why an answer is over, and what they call a limit of tokens.
_REASONS = ("finish_reason", "stop_reason", "done_reason")
_LIMITS = {"length", "max_tokens", "max_output_tokens", "model_length"}


class Calls(BaseCallbackHandler):
    """Listens to one run. Made in the run's own task.

    `broken` tells that an answer stopped without saying that it was over, which raises nothing.
    """

    def __init__(self) -> None:
        self.told: deque[Said] = deque()
        self.broken = False
        self._failures: list[BaseException] = []
        self._scope = tasks.scope()

    def take(self) -> Iterator[Said]:
        """What has been told since the last time."""
        while self.told:
            yield self.told.popleft()

    def failed_with(self, error: Exception) -> bool:
        """Whether an exception that says nothing of a model, such as a JSON error, is one's own."""
        return code_of(error) is Code.CHAIN_ERROR and any(error is one for one in self._failures)

    def end(self) -> Iterator[Said]:
        """The chain is through: what is left to tell. Raises Fault where an answer is broken."""
        yield from self.take()
        if self.broken:
            raise Fault(Code.MODEL_ERROR)

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
        self.told.append(custom(name, data))

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self._failures.append(error)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generation in (one for some in response.generations for one in some):
            if isinstance(generation, ChatGeneration):
                self._answered(generation.message)

    def _answered(self, message: Any) -> None:
        about = message.response_metadata
        # Only of OpenAI's protocol is it known that a whole answer tells why it ended.
        if about.get("model_provider") == "openai" and not about.keys() & _ENDINGS:
            self.broken = True
        usage = getattr(message, "usage_metadata", None)
        if usage:
            cost = {
                "model": about.get("model_name") or about.get("model"),
                "input_tokens": usage["input_tokens"],
                "output_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
            }
            self.told.append(("usage", encode(cost)))
        if _cut(about):
            self.told.append(custom("cut", "max_tokens"))


def custom(name: str, value: Any) -> Said:
    """A `custom` event; of a value that JSON cannot say, what it can."""
    return "custom", encode({"name": name, "value": plain(value)})


def _cut(about: dict[str, Any]) -> bool:
    reasons = [about.get(name) for name in _REASONS]
    details = about.get("incomplete_details")
    if isinstance(details, dict):
        reasons.append(details.get("reason"))
    return any(isinstance(reason, str) and reason.lower() in _LIMITS for reason in reasons)
