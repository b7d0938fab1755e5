"""Why a model stopped, in one vocabulary for all providers.

Each LangChain integration copies its provider's own word into a message's `response_metadata`.
This module reads that word. It imports no provider's package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from langchain_core import exceptions as langchain
from langchain_core.messages import BaseMessage


class FinishReason(StrEnum):
    """Why an answer is over, as the `end` event says it. The list is closed."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    CONTEXT_WINDOW = "context_window"
    STEP_LIMIT = "step_limit"


#: Where integrations keep the provider's word.
_KEYS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")
#: The providers' words, in lower case. A word that is missing here, such as `tool_calls`, does not
#: end an answer, or says nothing about how it ended.
_REASONS = {
    # OpenAI, llama.cpp, Ollama, Gemini, Mistral
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    # OpenAI's responses API: `status`, or the reason why a response is incomplete
    "completed": FinishReason.STOP,
    "max_output_tokens": FinishReason.LENGTH,
    # Anthropic, Bedrock
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "refusal": FinishReason.REFUSAL,
    "model_context_window_exceeded": FinishReason.CONTEXT_WINDOW,
    "content_filtered": FinishReason.CONTENT_FILTER,
    "guardrail_intervened": FinishReason.CONTENT_FILTER,
    # Gemini
    "safety": FinishReason.CONTENT_FILTER,
    "blocklist": FinishReason.CONTENT_FILTER,
    "prohibited_content": FinishReason.CONTENT_FILTER,
    "recitation": FinishReason.CONTENT_FILTER,
    "spii": FinishReason.CONTENT_FILTER,
    "image_safety": FinishReason.CONTENT_FILTER,
    # Cohere, Hugging Face
    "complete": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
}
#: In the metadata of a complete answer over OpenAI's protocol: chat completions, responses.
_OPENAI_KEYS = {"finish_reason", "status"}
#: Absent from older versions of langchain-core.
_REFUSAL_ERROR: type[Exception] | tuple[()] = getattr(langchain, "ModelRefusalError", ())


def is_complete(metadata: Mapping[str, Any]) -> bool:
    """Return whether an answer ended by itself, judged by its message's metadata.

    When a provider's connection breaks in the middle of a stream, nothing is raised. Only for
    OpenAI's protocol is it certain that a complete answer states its finish reason.
    """
    return metadata.get("model_provider") != "openai" or not _OPENAI_KEYS.isdisjoint(metadata)


def states_reason(metadata: Mapping[str, Any]) -> bool:
    """Return whether a message's metadata states a finish reason, known or not."""
    return any(metadata.get(key) for key in _KEYS)


def finish_reason(message: BaseMessage) -> FinishReason | None:
    """Return why the model ended this message; None if that is unknown, or if it calls tools."""
    if _refuses(message):
        return FinishReason.REFUSAL
    reason = reason_in(message.response_metadata)
    # Some providers say `stop` although the model waits for the result of a tool.
    if reason is FinishReason.STOP and getattr(message, "tool_calls", None):
        return None
    return reason


def reason_in(metadata: Mapping[str, Any]) -> FinishReason | None:
    """Return the finish reason that metadata states; None if there is none that is known."""
    found = (_REASONS.get(word) for word in _words(metadata))
    return next((reason for reason in found if reason is not None), None)


def error_finish_reason(error: BaseException) -> FinishReason | None:
    """Return the finish reason that an exception stands for; None for most of them."""
    # Without LangGraph in the process, nothing can have raised its error.
    langgraph = sys.modules.get("langgraph.errors")
    if langgraph is not None and isinstance(error, langgraph.GraphRecursionError):
        return FinishReason.STEP_LIMIT
    return FinishReason.REFUSAL if isinstance(error, _REFUSAL_ERROR) else None


def _words(metadata: Mapping[str, Any]) -> Iterator[str]:
    details = metadata.get("incomplete_details")
    values = [metadata.get(key) for key in _KEYS]
    if isinstance(details, dict):
        values.insert(0, details.get("reason"))
    for value in values:
        if value is not None:
            # An enum's member, or its text: `FinishReason.SAFETY`.
            yield str(getattr(value, "name", value)).rpartition(".")[2].lower()


def _refuses(message: BaseMessage) -> bool:
    if message.additional_kwargs.get("refusal"):
        return True
    content = message.content if isinstance(message.content, list) else ()
    return any(isinstance(block, dict) and block.get("type") == "refusal" for block in content)
