"""`chat`: a conversation with a model, as an LCEL chain."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from ..config import Settings


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
