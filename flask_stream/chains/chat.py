"""`chat`: a conversation with a model, as an LCEL chain."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable

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

    return prompt | model
