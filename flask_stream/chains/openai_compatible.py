"""ChatOpenAI for all servers with OpenAI's protocol, including their reasoning field."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import model_validator

from .langchain_internals import remove_openai_identity

#: The field of a delta for reasoning: of DeepSeek, llama.cpp and vLLM; of Ollama and OpenRouter.
_REASONING_KEYS = ("reasoning_content", "reasoning")


class Compatible(ChatOpenAI):
    """Keeps the reasoning in a delta, which ChatOpenAI drops."""

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        converted = super()._convert_chunk_to_generation_chunk(
            chunk, default_chunk_class, base_generation_info
        )
        if converted is not None and isinstance(converted.message, AIMessageChunk):
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                text = next((delta[name] for name in _REASONING_KEYS if delta.get(name)), None)
                if isinstance(text, str):
                    converted.message.additional_kwargs["reasoning_content"] = text
        return converted


class ThirdParty(Compatible):
    """For servers other than OpenAI's. Does not send what the environment sets for OpenAI.

    That is the organization, the project and headers (`OPENAI_CUSTOM_HEADERS`). They may contain
    secrets.
    """

    @model_validator(mode="after")
    def _remove_openai_identity(self) -> Self:
        remove_openai_identity(self)
        return self
