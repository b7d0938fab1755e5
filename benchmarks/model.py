"""The chain that every contestant serves: a number of tokens, as fast as possible."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from .words import words


class FakeModel(BaseChatModel):
    """A chat model that streams the same `tokens` words each time, with or without async.

    It reports each token to LangChain's callbacks, as real models do.
    """

    tokens: int

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = AIMessage(content="".join(words(self.tokens)))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for piece in self._pieces():
            if run_manager is not None:
                run_manager.on_llm_new_token(piece.text, chunk=piece)
            yield piece

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for piece in self._pieces():
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece.text, chunk=piece)
            yield piece

    def _pieces(self) -> Iterator[ChatGenerationChunk]:
        said = words(self.tokens)
        for word in said[:-1]:
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        # Without this, LangChain adds an empty last chunk.
        last = AIMessageChunk(content=said[-1], chunk_position="last")
        yield ChatGenerationChunk(message=last)


def _model() -> BaseChatModel:
    provider = os.environ.get("BENCH_PROVIDER")
    if not provider:
        return FakeModel(tokens=int(os.environ["BENCH_TOKENS"]))
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return ChatOpenAI(model="scripted", base_url=provider, api_key=SecretStr("none"))


def _chain() -> tuple[Runnable[Any, Any], Any]:
    if os.environ.get("BENCH_CHAIN") == "model":
        return _model(), QUESTION
    # The chain of most tutorials, and of the README.
    prompt = ChatPromptTemplate.from_template("Answer in one short sentence: {question}")
    return prompt | _model() | StrOutputParser(), {"question": QUESTION}


QUESTION = "Hello"
#: The chain that the environment selects, and its input: the fake model or ChatOpenAI, with or
#: without a prompt and a parser.
chain, asked = _chain()


def text(piece: Any) -> str:
    """Return the text of one chunk of the chain's answer."""
    return piece if isinstance(piece, str) else str(piece.content)
