"""ChatOpenAI for every server that speaks its protocol: with what many of them say beside it."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import model_validator

from .langchain_internals import remove_openai_identity

#: What a delta's reasoning is called: by DeepSeek, llama.cpp and vLLM; by Ollama and OpenRouter.
_NAMES = ("reasoning_content", "reasoning")


class Compatible(ChatOpenAI):
    """Keeps the reasoning that a delta has beside its content, which ChatOpenAI leaves out."""

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(
            chunk, default_chunk_class, base_generation_info
        )
        if made is not None and isinstance(made.message, AIMessageChunk):
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                text = next((delta[name] for name in _NAMES if delta.get(name)), None)
                if isinstance(text, str):
                    made.message.additional_kwargs["reasoning_content"] = text
        return made


class Elsewhere(Compatible):
    """For a server that is not OpenAI's: it is not told what the environment has for OpenAI.

    That is an organization, a project, and headers (`OPENAI_CUSTOM_HEADERS`), which may be keys.
    """

    @model_validator(mode="after")
    def _tell_nothing_of_openai(self) -> Self:
        remove_openai_identity(self)
        return self
