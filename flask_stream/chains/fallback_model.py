"""The model that the settings name, made when it is first asked; and the one that stands in."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.exceptions import ModelError
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr

from ..concurrency import tasks
from ..config import Settings
from ..errors import ErrorCode, RunFailed
from ..sources.finish_reasons import is_complete
from .langchain_internals import generate_unreported, stream_unreported, streams
from .local_model import ModelUnavailable
from .models import chosen, fallback, maker
from .retries import backoff, own_retries, passes

logger = logging.getLogger(__name__)

#: Blocks of content that may be without any.
_EMPTY = {"text", "reasoning"}
#: Errors that say why a model has failed. What else comes out of one is its error, too.
_SAYING = (RunFailed, ModelError, TimeoutError, ConnectionError)


class FallbackModel(BaseChatModel):
    """Asks the settings' model, once more where it fails before its first token, then the fallback.

    That is the first text, reasoning or piece of a tool call. Never after it: what has been shown
    is not said again in other words. What a server refuses, the model's client asks for again; an
    answer that breaks off is asked for again here. Neither more often than the settings say.

    Raises ConfigError for settings that cannot work, when it is made; and what a model raises, or
    Fault where that does not tell that it was a model's.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    settings: Settings
    tools: Sequence[Any] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    _models: list[Callable[[], BaseChatModel]] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: Any, /) -> None:
        asked = {
            "STREAM_MODEL": chosen(self.settings),
            "STREAM_FALLBACK_MODEL": fallback(self.settings),
        }
        for setting, model in asked.items():
            if model is not None:
                self._models.append(_once(maker(setting, model, self.settings)))

    @property
    def _llm_type(self) -> str:
        return "chosen"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **options: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        # Each provider has a form of its own for them: they are bound when one is asked.
        return self.model_copy(update={"tools": tools, "options": options})

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        most = self.settings.model_retries + 1
        for place, make in enumerate(self._models, 1):
            final = place == len(self._models)
            asked = 0
            again = True
            while again:
                # What says nothing is held back, but only while it could be asked for once more.
                begun = final and asked + 1 >= most
                heard = False
                held: list[ChatGenerationChunk] = []
                model: BaseChatModel | None = None
                try:
                    model = make()
                    with closing(self._asked(model, messages, stop, kwargs)) as chunks:
                        for chunk in chunks:
                            heard = True
                            held.append(chunk)
                            begun = begun or _says(chunk.message)
                            while begun and held:
                                yield _told(held.pop(0), run_manager)
                    if not heard or not (begun or _ended(held)):
                        raise RunFailed(ErrorCode.MODEL_ERROR)
                except Exception as error:
                    took = 1 if heard or model is None else 1 + own_retries(model, error)
                    asked += took
                    again = not begun and asked + took <= most and passes(error)
                    if begun or (final and not again):
                        fault = _fault(error)
                        if fault is None:
                            raise
                        raise fault from error
                    logger.warning("model: %s: %s", error, "again" if again else "the fallback")
                else:
                    for chunk in held:
                        yield _told(chunk, run_manager)
                    return
                tasks.pause(backoff(asked) if again else 0)

    def _asked(
        self,
        model: BaseChatModel,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> Generator[ChatGenerationChunk, None, None]:
        """One model's answer; whole, where it cannot stream. No callback hears of it twice."""
        bound: Runnable[Any, Any] = model
        if self.tools:
            bound = model.bind_tools(self.tools, **self.options)
            while isinstance(bound, RunnableBinding):
                options = {**bound.kwargs, **options}
                bound = bound.bound
        if not isinstance(bound, BaseChatModel):
            raise TypeError(f"{type(model).__name__}.bind_tools gives no chat model")
        if streams(bound, options):
            if bound.rate_limiter:
                bound.rate_limiter.acquire(blocking=True)
            yield from stream_unreported(bound, messages, stop, options)
        else:
            result = generate_unreported(bound, messages, stop, options)
            yield _whole(result.generations[0].message)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))


def _told(
    chunk: ChatGenerationChunk, run_manager: CallbackManagerForLLMRun | None
) -> ChatGenerationChunk:
    if run_manager is not None:
        run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
    return chunk


def _whole(message: BaseMessage) -> ChatGenerationChunk:
    """A message as the one chunk of a stream."""
    if isinstance(message, AIMessageChunk):
        return ChatGenerationChunk(message=message)
    fields = message.model_dump(exclude={"type", "tool_calls", "invalid_tool_calls"})
    calls: list[Any] = []
    if isinstance(message, AIMessage):
        calls = [*message.tool_calls, *message.invalid_tool_calls]
    pieces = [
        tool_call_chunk(
            name=call["name"],
            args=args if isinstance(args := call["args"], str) else json.dumps(args),
            id=call["id"],
            index=index,
        )
        for index, call in enumerate(calls)
    ]
    return ChatGenerationChunk(
        message=AIMessageChunk(**fields, tool_call_chunks=pieces, chunk_position="last")
    )


def _says(message: BaseMessage) -> bool:
    """Whether it has any text, reasoning, piece of a tool call, or other content to be shown."""
    if message.text or message.additional_kwargs.get("reasoning_content"):
        return True
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return True
    blocks: list[Any] = [*message.content_blocks]
    return any(block.get(block["type"], block["type"] not in _EMPTY) for block in blocks)


def _ended(chunks: list[ChatGenerationChunk]) -> bool:
    """Whether an answer without content is over."""
    about: dict[str, Any] = {}
    for chunk in chunks:
        about |= (chunk.generation_info or {}) | chunk.message.response_metadata
    return is_complete(about)


def _fault(error: Exception) -> RunFailed | None:
    """The code of what a model has failed with, where the error itself does not say it."""
    if isinstance(error, ModelUnavailable):
        return RunFailed(ErrorCode.MODEL_UNAVAILABLE)
    says = isinstance(error, _SAYING) or isinstance(getattr(error, "status_code", None), int)
    return None if says else RunFailed(ErrorCode.MODEL_ERROR)


def _once(first: Callable[[], BaseChatModel]) -> Callable[[], BaseChatModel]:
    made: list[BaseChatModel] = []
    lock = threading.Lock()

    def make() -> BaseChatModel:
        with lock:  # the first question may come with others beside it
            if not made:
                made.append(first())
            return made[0]

    return make
