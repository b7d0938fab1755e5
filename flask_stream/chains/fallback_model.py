"""The model that the settings name, with retries and a fallback model."""

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
from .models import configured_model, fallback_model, model_factory
from .retries import backoff, is_temporary, own_retries

logger = logging.getLogger(__name__)

#: Types of content blocks that may be empty.
_MAY_BE_EMPTY = {"text", "reasoning"}
#: Errors whose type says why a model failed. A model may raise any other type as well.
_KNOWN_ERRORS = (RunFailed, ModelError, TimeoutError, ConnectionError)


class FallbackModel(BaseChatModel):
    """Calls the model of the settings. If it fails, repeats the request, then calls the fallback.

    It does so only before the first token: text, reasoning, or a piece of a tool call. After that,
    a second answer would contradict what the user has already seen. The model's own client repeats
    a request that got no answer. This class repeats one whose answer broke off. Both together
    respect the settings' number of retries.

    The constructor raises ConfigError for invalid settings. A call raises what the model raises, or
    RunFailed if the type of that error does not show that it comes from a model.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    settings: Settings
    tools: Sequence[Any] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    _models: list[Callable[[], BaseChatModel]] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: Any, /) -> None:
        models = {
            "STREAM_MODEL": configured_model(self.settings),
            "STREAM_FALLBACK_MODEL": fallback_model(self.settings),
        }
        for setting, model in models.items():
            if model is not None:
                self._models.append(_once(model_factory(setting, model, self.settings)))

    @property
    def _llm_type(self) -> str:
        return "fallback"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **options: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        # Each provider has its own format for tools, so they are bound for each call.
        return self.model_copy(update={"tools": tools, "options": options})

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        max_attempts = self.settings.model_retries + 1
        for number, make in enumerate(self._models, 1):
            is_last = number == len(self._models)
            attempts = 0
            retry = True
            while retry:
                # Chunks without content are buffered while the request might still be repeated.
                begun = is_last and attempts + 1 >= max_attempts
                answered = False
                buffer: list[ChatGenerationChunk] = []
                model: BaseChatModel | None = None
                try:
                    model = make()
                    with closing(self._chunks(model, messages, stop, kwargs)) as chunks:
                        for chunk in chunks:
                            answered = True
                            buffer.append(chunk)
                            begun = begun or _has_content(chunk.message)
                            while begun and buffer:
                                yield _report(buffer.pop(0), run_manager)
                    if not answered or not (begun or _ended(buffer)):
                        raise RunFailed(ErrorCode.MODEL_ERROR)
                except Exception as error:
                    used = 1 if answered or model is None else 1 + own_retries(model, error)
                    attempts += used
                    retry = not begun and attempts + used <= max_attempts and is_temporary(error)
                    if begun or (is_last and not retry):
                        failure = _run_failed(error)
                        if failure is None:
                            raise
                        raise failure from error
                    next_step = "retrying" if retry else "using the fallback model"
                    logger.warning("model: failed: %s; %s", error, next_step)
                else:
                    for chunk in buffer:
                        yield _report(chunk, run_manager)
                    return
                tasks.pause(backoff(attempts) if retry else 0)

    def _chunks(
        self,
        model: BaseChatModel,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> Generator[ChatGenerationChunk, None, None]:
        """Stream a model's answer without callbacks. If it cannot stream, yield a single chunk."""
        bound: Runnable[Any, Any] = model
        if self.tools:
            bound = model.bind_tools(self.tools, **self.options)
            while isinstance(bound, RunnableBinding):
                options = {**bound.kwargs, **options}
                bound = bound.bound
        if not isinstance(bound, BaseChatModel):
            raise TypeError(f"{type(model).__name__}.bind_tools must return a chat model")
        if streams(bound, options):
            if bound.rate_limiter:
                bound.rate_limiter.acquire(blocking=True)
            yield from stream_unreported(bound, messages, stop, options)
        else:
            result = generate_unreported(bound, messages, stop, options)
            yield _as_chunk(result.generations[0].message)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))


def _report(
    chunk: ChatGenerationChunk, run_manager: CallbackManagerForLLMRun | None
) -> ChatGenerationChunk:
    """Pass the chunk to the callbacks and return it."""
    if run_manager is not None:
        run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
    return chunk


def _as_chunk(message: BaseMessage) -> ChatGenerationChunk:
    """Return a whole message as the only chunk of a stream."""
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


def _has_content(message: BaseMessage) -> bool:
    """Return whether the message has text, reasoning, a piece of a tool call, or other content."""
    if message.text or message.additional_kwargs.get("reasoning_content"):
        return True
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return True
    blocks: list[Any] = [*message.content_blocks]
    return any(block.get(block["type"], block["type"] not in _MAY_BE_EMPTY) for block in blocks)


def _ended(chunks: list[ChatGenerationChunk]) -> bool:
    """Return whether an answer without content is complete."""
    metadata: dict[str, Any] = {}
    for chunk in chunks:
        metadata |= (chunk.generation_info or {}) | chunk.message.response_metadata
    return is_complete(metadata)


def _run_failed(error: Exception) -> RunFailed | None:
    """Return the error with the code of a model's failure; None if its own type shows it."""
    if isinstance(error, ModelUnavailable):
        return RunFailed(ErrorCode.MODEL_UNAVAILABLE)
    known = isinstance(error, _KNOWN_ERRORS) or isinstance(getattr(error, "status_code", None), int)
    return None if known else RunFailed(ErrorCode.MODEL_ERROR)


def _once(factory: Callable[[], BaseChatModel]) -> Callable[[], BaseChatModel]:
    """Return a function that calls `factory` once and always returns the same model."""
    made: list[BaseChatModel] = []
    lock = threading.Lock()

    def make() -> BaseChatModel:
        with lock:  # the first runs may be concurrent
            if not made:
                made.append(factory())
            return made[0]

    return make
