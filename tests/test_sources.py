"""What chains say, as events: the same for a message, a parser's text and a function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableGenerator
from langchain_openai import ChatOpenAI

from flask_stream.errors import Code, Fault
from flask_stream.faults import code_of
from flask_stream.sources.base import Input, Source, Turn
from flask_stream.sources.function import FunctionSource
from flask_stream.sources.langchain import LangChainSource, fitting

from .provider import Provider, Script

QUESTION = Input({"question": "Why?"}, [Turn("Who?", "Me.")])


def events(source: Source, input: Input = QUESTION) -> list[tuple[str, Any]]:
    return [(type, json.loads(data)) for type, data in source.stream(input)]


def chunks(source: Source) -> list[str]:
    return [data["content"] for type, data in events(source) if type == "chunk"]


@pytest.fixture
def model(provider: Provider) -> ChatOpenAI:
    provider.script = Script(["Be", "cause", " so"])
    return ChatOpenAI(
        model="scripted", base_url=provider.url, api_key=lambda: "test", stream_usage=True
    )


PROMPT = ChatPromptTemplate.from_template("{question}")


def test_a_token_is_a_chunk_with_a_parser_and_without(model: ChatOpenAI) -> None:
    assert chunks(LangChainSource(PROMPT | model)) == ["Be", "cause", " so"]
    assert chunks(LangChainSource(PROMPT | model | StrOutputParser())) == ["Be", "cause", " so"]
    assert chunks(LangChainSource(model)) == ["Be", "cause", " so"]


def test_usage_comes_through_a_parser(model: ChatOpenAI) -> None:
    said = events(LangChainSource(PROMPT | model | StrOutputParser()))
    assert [type for type, _ in said] == ["message", "chunk", "chunk", "chunk", "usage"]
    assert said[-1][1]["total_tokens"] > 0
    assert said[-1][1]["model"] == "scripted"


def saying(*pieces: Any) -> LangChainSource:
    """A runnable that streams just these pieces."""

    def say(_: Iterator[Any]) -> Iterator[Any]:
        yield from pieces

    return LangChainSource(RunnableGenerator(say))


def test_blocks_are_told_apart_by_kind() -> None:
    content: list[str | dict[str, Any]] = [
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "text", "text": "So."},
        "There.",
        {"type": "image", "url": "x"},
    ]
    said = [d for t, d in events(saying(AIMessageChunk(content=content))) if t == "chunk"]
    assert [(chunk["kind"], chunk["content"]) for chunk in said] == [
        ("reasoning", "Hm."),
        ("text", "So."),
        ("text", "There."),
    ]


def test_each_message_opens_once() -> None:
    pieces = [AIMessageChunk(content=c, id=id) for c, id in (("a", "1"), ("b", "1"), ("c", "2"))]
    said = events(saying(*pieces))
    assert [(t, d.get("id") or d["message"]) for t, d in said] == [
        ("message", "m1"),
        ("chunk", "m1"),
        ("chunk", "m1"),
        ("message", "m2"),
        ("chunk", "m2"),
    ]


def test_what_is_no_text_is_a_custom_event() -> None:
    said = events(saying({"n": 1, "x": object, "nan": float("nan")}))
    value = {"n": 1, "x": "type", "nan": None}
    assert said == [("custom", {"name": "output", "value": value})]


def test_a_function_says_text() -> None:
    assert chunks(FunctionSource(lambda q: iter([q, "", "!"]))) == ["Why?", "!"]
    assert chunks(FunctionSource(lambda q: q)) == ["Why?"]


def test_a_function_that_says_no_text_is_told_so() -> None:
    numbers: Any = lambda _: iter([1])  # noqa: E731 - what the types would refuse
    with pytest.raises(TypeError, match="yields text, not int"):
        chunks(FunctionSource(numbers))


def test_closing_a_source_closes_its_chain() -> None:
    closed: list[bool] = []

    def endless(_: Any) -> Iterator[str]:
        try:
            while True:
                yield "on"
        finally:
            closed.append(True)

    for source in (FunctionSource(endless), LangChainSource(RunnableGenerator(endless))):
        stream = source.stream(QUESTION)
        next(stream)
        stream.close()
    assert closed == [True, True]


def test_how_a_question_is_put_is_found_in_the_schema() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("x")]))
    topic = ChatPromptTemplate.from_template("A joke about {topic}")
    history = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), ("human", "{question}")]
    )
    messages = ChatPromptTemplate.from_messages([MessagesPlaceholder("messages")])
    assert fitting(model)(QUESTION) == "Why?"
    assert fitting(topic | model)(QUESTION) == {"topic": "Why?"}
    asked = fitting(history | model)(QUESTION)
    assert asked["question"] == "Why?"
    assert [m.content for m in asked["history"]] == ["Who?", "Me."]
    assert [m.content for m in fitting(messages | model)(QUESTION)["messages"]] == [
        "Who?",
        "Me.",
        "Why?",
    ]
    with pytest.raises(ValueError, match="adjective, topic"):
        fitting(ChatPromptTemplate.from_template("A {adjective} joke about {topic}") | model)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Fault(Code.INPUT_TOO_LONG), Code.INPUT_TOO_LONG),
        (TimeoutError(), Code.TIMEOUT),
        (ConnectionResetError(), Code.MODEL_UNAVAILABLE),
        (KeyError("x"), Code.CHAIN_ERROR),
    ],
)
def test_an_exception_has_a_code(error: Exception, code: Code) -> None:
    assert code_of(error) is code
