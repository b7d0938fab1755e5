"""The model that every contestant asks: a fake that never waits, or ChatOpenAI before a server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from .words import words


class FakeModel(BaseChatModel):
    """Says its words as fast as it can, natively in both worlds, as real models do."""

    tokens: int

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise RuntimeError("it only streams")

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for word in words(self.tokens):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for word in words(self.tokens):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            if run_manager:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk


#: Whether the model is asked alone, without a prompt before it and a parser after it.
ALONE = os.environ.get("BENCH_ALONE") == "1"
#: What the chain is asked with.
INPUT: Any = "Hello" if ALONE else {"question": "Hello"}


def chosen() -> Runnable[Any, Any]:
    """The chain that everybody serves: `prompt | model | parser`, or the model alone."""
    model = _model()
    if ALONE:
        return model
    return ChatPromptTemplate.from_template("{question}") | model | StrOutputParser()


def _model() -> BaseChatModel:
    """The fake model of `BENCH_TOKENS`, or ChatOpenAI at `BENCH_PROVIDER` where that is set."""
    provider = os.environ.get("BENCH_PROVIDER")
    if not provider:
        return FakeModel(tokens=int(os.environ["BENCH_TOKENS"]))
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="bench", base_url=provider, api_key=lambda: "bench", max_retries=0)


def text(piece: Any) -> str:
    """What a piece of the stream says: the parser's text, or that of a message."""
    return piece if isinstance(piece, str) else str(piece.content)
