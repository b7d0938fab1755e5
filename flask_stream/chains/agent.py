"""The built-in chain `agent`: a model with tools. It is LangChain's ReAct agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel

from ..config import Settings
from ..errors import ConfigError
from .tools import calculator, search_in, time_in

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

_PROMPT = (
    "You have tools. Use them for every calculation, for the time, and, where there is one, for "
    "what the user's own documents say; name the documents that you used. Do not guess what a "
    "tool can tell."
)


def agent(model: BaseChatModel, settings: Settings) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return a graph that takes `{"messages": [message, …]}`.

    Raises ConfigError if LangGraph is not installed or the documents folder does not exist.
    """
    try:
        from langchain.agents import create_agent
    except ImportError as missing:
        raise ConfigError(
            "chain 'agent'", "needs: pip install 'flask-llm-stream[graph]'"
        ) from missing
    tools = [calculator, time_in]
    if settings.documents:
        tools.append(search_in(settings.documents))
    prompt = f"{settings.system_prompt}\n\n{_PROMPT}"
    return create_agent(model, tools, system_prompt=prompt)
