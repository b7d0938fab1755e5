"""The private methods of LangChain that the built-in chains need. No other module calls them.

`FallbackModel` is a chat model that asks other chat models. LangChain's public methods would
report each call to the callbacks twice. tests/test_internals.py names the method that has changed
if an upgrade breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult


def streams(model: BaseChatModel, options: dict[str, Any]) -> bool:
    """Return whether the model streams with these options."""
    return model._should_stream(async_api=False, **{**options, "stream": True})


def stream_unreported(
    model: BaseChatModel,
    messages: list[BaseMessage],
    stop: list[str] | None,
    options: dict[str, Any],
) -> Iterator[ChatGenerationChunk]:
    """Stream a model's answer without calling the callbacks."""
    return model._stream(messages, stop=stop, **options)


def generate_unreported(
    model: BaseChatModel,
    messages: list[BaseMessage],
    stop: list[str] | None,
    options: dict[str, Any],
) -> ChatResult:
    """Return a model's whole answer, which may be cached, without calling the callbacks."""
    return model._generate_with_cache(messages, stop=stop, **options)


def remove_openai_identity(model: Any) -> None:
    """Remove the organization, project and headers for OpenAI that the environment sets."""
    for client in (model.root_client, model.root_async_client):
        client.organization = client.project = None
        client._custom_headers = {}
