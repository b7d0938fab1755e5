"""The built-in chain `chat`: a conversation with a model, as an LCEL chain."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable

from ..config import Settings


def chat(model: BaseChatModel, settings: Settings) -> Runnable[dict[str, Any], BaseMessage]:
    """Return a chain that takes `{"question": str, "history": [message, …]}`.

    It streams message chunks.
    """
    prompt = ChatPromptTemplate.from_messages(
        [
            # A variable: braces in the settings' prompt are not parsed as a template.
            ("system", "{system}"),
            MessagesPlaceholder("history", optional=True),
            ("human", "{question}"),
        ]
    ).partial(system=settings.system_prompt)

    return prompt | model
