"""`chat`: a conversation with a model, as an LCEL chain."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnablePassthrough

from ..config import Settings
from .models import chat_model


def chat(model: BaseChatModel, settings: Settings) -> Runnable[dict[str, Any], BaseMessage]:
    """A chain of `{"question": str, "history": [message, …]}`, which streams message chunks."""
    prompt = ChatPromptTemplate.from_messages(
        [
            # Not a template: a brace in it is a brace.
            ("system", "{system}"),
            MessagesPlaceholder("history", optional=True),
            ("human", "{question}"),
        ]
    ).partial(system=settings.system_prompt)

    def trimmed(asked: dict[str, Any]) -> list[BaseMessage]:
        kept: list[BaseMessage] = trim_messages(
            asked.get("history", []),
            max_tokens=settings.history_tokens,
            token_counter=count_tokens_approximately,
            start_on="human",
        )
        return kept

    return RunnablePassthrough.assign(history=RunnableLambda(trimmed)) | prompt | model


class Chat:
    """The built-in chat: its model is made, and if need be started, when it is first asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def stream(self, input: Any, config: RunnableConfig | None = None) -> Iterator[BaseMessage]:
        """Ask the chain; the same as `chat(chat_model(settings), settings).stream`."""
        return self._chain.stream(input, config)

    @cached_property
    def _chain(self) -> Runnable[dict[str, Any], BaseMessage]:
        return chat(chat_model(self._settings), self._settings)
