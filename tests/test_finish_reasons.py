"""Finish reasons: what providers call them, and what the `end` of a run says."""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core import exceptions as langchain
from langchain_core.language_models import FakeListLLM, FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph

from flask_stream.sources.base import Input, Source
from flask_stream.sources.finish_reasons import (
    FinishReason,
    error_finish_reason,
    finish_reason,
    is_complete,
)
from flask_stream.sources.function import FunctionSource
from flask_stream.sources.langchain import LangChainSource
from flask_stream.sources.langgraph import LangGraphSource

from .claude import Claude
from .provider import Provider, Script


def reason(source: Source) -> FinishReason | None:
    """What a source returns after its last event."""
    stream: Generator[Any, None, Any] = source.stream(Input({"question": "Why?"}))
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class Gemini(enum.Enum):
    """As Google's packages have it: the member, or its text, is in the metadata."""

    SAFETY = 3


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        # OpenAI: chat completions
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"finish_reason": "tool_calls"}, None),
        ({"finish_reason": "function_call"}, None),
        # OpenAI: responses
        ({"status": "completed", "incomplete_details": None}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
        ),
        ({"status": "failed"}, None),
        # Anthropic
        ({"stop_reason": "end_turn", "stop_sequence": None}, "stop"),
        ({"stop_reason": "stop_sequence", "stop_sequence": "END"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stop_reason": "refusal"}, "refusal"),
        ({"stop_reason": "model_context_window_exceeded"}, "context_window"),
        ({"stop_reason": "tool_use"}, None),
        ({"stop_reason": "pause_turn"}, None),
        # Ollama
        ({"done": True, "done_reason": "stop"}, "stop"),
        ({"done": True, "done_reason": "length"}, "length"),
        # Gemini
        ({"finish_reason": "STOP"}, "stop"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "FinishReason.RECITATION"}, "content_filter"),
        ({"finish_reason": Gemini.SAFETY}, "content_filter"),
        # Mistral, Bedrock, Cohere
        ({"finish_reason": "model_length"}, "length"),
        ({"stopReason": "guardrail_intervened"}, "content_filter"),
        ({"finish_reason": "COMPLETE"}, "stop"),
        # What nobody knows
        ({"finish_reason": "banana"}, None),
        ({"finish_reason": 2}, None),
        ({"finish_reason": None}, None),
        ({}, None),
    ],
)
def test_what_providers_say(metadata: dict[str, Any], expected: str | None) -> None:
    assert finish_reason(AIMessage("x", response_metadata=metadata)) == expected


def test_a_refusal_is_one_although_the_provider_says_stop() -> None:
    stop = {"finish_reason": "stop"}
    said = AIMessage("", additional_kwargs={"refusal": "No."}, response_metadata=stop)
    assert finish_reason(said) == "refusal"
    blocks: list[Any] = [{"type": "refusal", "refusal": "No."}]
    assert finish_reason(AIMessage(blocks, response_metadata={"status": "completed"})) == "refusal"


def test_an_answer_that_waits_for_a_tool_is_not_over() -> None:
    call: Any = {"name": "add", "args": {}, "id": "1"}
    said = AIMessage("", tool_calls=[call], response_metadata={"done_reason": "stop"})
    assert finish_reason(said) is None


@pytest.mark.parametrize(
    ("metadata", "complete"),
    [
        ({"model_provider": "openai"}, False),
        ({"model_provider": "openai", "finish_reason": "stop"}, True),
        ({"model_provider": "openai", "status": "completed"}, True),
        ({"model_provider": "other"}, True),
        ({}, True),
    ],
)
def test_only_openai_always_says_that_an_answer_is_complete(
    metadata: dict[str, Any], complete: bool
) -> None:
    assert is_complete(metadata) is complete


def test_what_an_error_stands_for() -> None:
    assert error_finish_reason(GraphRecursionError("x")) == "step_limit"
    if hasattr(langchain, "ModelRefusalError"):  # from 1.7.5 on
        assert error_finish_reason(langchain.ModelRefusalError("x")) == "refusal"
    assert error_finish_reason(RecursionError("x")) is None


# Through the sources


@pytest.mark.parametrize("stated", ["length", "content_filter", None])
def test_of_a_chain_wherever_its_model_is(provider: Provider, stated: str | None) -> None:
    provider.script = Script(["Once upon"], finish_reason=stated)
    model = ChatOpenAI(model="scripted", base_url=provider.url, api_key=lambda: "test")
    hidden: Any = RunnableLambda(lambda question: model.invoke(question, stream=False).text)
    for chain in (model, model | StrOutputParser(), hidden):
        assert reason(LangChainSource(chain)) == (stated or "stop")


def test_of_several_calls_the_last_counts() -> None:
    said = [
        AIMessage("a", response_metadata={"stop_reason": "max_tokens"}),
        AIMessage("b", response_metadata={"stop_reason": "end_turn"}),
    ]
    model = FakeMessagesListChatModel(responses=[*said])
    twice: Runnable[Any, Any] = model | StrOutputParser() | model
    assert reason(LangChainSource(twice)) == "stop"


def test_of_a_model_that_says_nothing_it_is_not_known() -> None:
    assert reason(LangChainSource(FakeListLLM(responses=["a"]))) is None
    assert reason(LangChainSource(RunnableLambda(str))) is None


def test_of_claude() -> None:
    with Claude([], ["Hi"]) as claude:
        known: Any = {"model": "claude-test", "base_url": claude.url, "api_key": "test"}
        model = ChatAnthropic(**known)
        assert reason(LangChainSource(model)) == "stop"


def test_of_a_function_it_is_that_of_the_last_message_that_states_one() -> None:
    def said(question: str) -> Iterator[Any]:
        yield AIMessageChunk(content="a", response_metadata={"model_provider": "x"})
        yield AIMessageChunk(content="", response_metadata={"done_reason": "length"})
        yield AIMessageChunk(content="", chunk_position="last")
        yield "."

    assert reason(FunctionSource(said)) == "length"
    assert reason(FunctionSource(lambda question: [question])) is None


def test_a_graph_that_takes_too_many_steps_has_met_its_limit() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("again", lambda state: {})
    graph.add_edge(START, "again")
    graph.add_edge("again", "again")
    with pytest.raises(GraphRecursionError) as error:
        reason(LangGraphSource(graph.compile()))
    assert error_finish_reason(error.value) == "step_limit"
