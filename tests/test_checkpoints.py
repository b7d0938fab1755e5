"""Graphs' state by URL: kept for another process, forked, resumed and forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from flask_stream.checkpoints import open_checkpoints, with_types_of
from flask_stream.errors import ConfigError
from flask_stream.sources.base import Input
from flask_stream.sources.langgraph import LangGraphSource

from .valkey import Valkey


@dataclass
class Note:
    """A type of the graph's own."""

    text: str


class State(MessagesState):
    note: Note


def count(state: State) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{len(state['messages'])} so far")], "note": Note("kept")}


def decide(state: State) -> dict[str, Any]:
    asked = state["messages"][-2].content
    answer = interrupt("Really?") if asked == "ask" else "nothing"
    return {"messages": [AIMessage(f"{answer}, {state['note'].text}")]}


builder = StateGraph(State)
builder.add_node("count", count)
builder.add_node("decide", decide)
builder.add_edge(START, "count")
builder.add_edge("count", "decide")
graph = builder.compile()


@pytest.fixture(params=["sqlite", "valkey"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite:///state.db"
    else:
        with Valkey() as valkey:
            yield valkey.url


def source(url: str, folder: Path) -> LangGraphSource:
    """As another process would make it: on connections of its own."""
    saver = open_checkpoints(url, str(folder))
    assert saver is not None
    return LangGraphSource(graph, checkpointer=with_types_of(saver, graph))


def said(source: LangGraphSource, run: str, text: str, **more: Any) -> list[str]:
    input = Input({"question": text}, run=run, thread="thread", **more)
    events = [(type, json.loads(data)) for type, data in source.stream(input)]
    return [data["content"] for type, data in events if type == "chunk"]


def test_a_conversation_goes_on_in_another_process(url: str, tmp_path: Path) -> None:
    assert said(source(url, tmp_path), "a" * 32, "hi") == ["1 so far", "nothing, kept"]
    later = source(url, tmp_path)
    assert said(later, "b" * 32, "more", parent="a" * 32)[0] == "4 so far"
    # Asked again after the same run: a fork, which does not know of the other branch.
    assert said(later, "c" * 32, "other", parent="a" * 32)[0] == "4 so far"
    # And a question that follows nobody begins anew.
    assert said(later, "d" * 32, "new")[0] == "1 so far"


def test_what_was_asked_is_answered_in_another_process(url: str, tmp_path: Path) -> None:
    assert said(source(url, tmp_path), "a" * 32, "ask") == ["1 so far"]
    again = source(url, tmp_path)
    assert said(again, "b" * 32, "", parent="a" * 32, resume="yes") == ["yes, kept"]


def test_what_is_forgotten_is_gone(url: str, tmp_path: Path) -> None:
    first = source(url, tmp_path)
    said(first, "a" * 32, "hi")
    first.forget("thread")
    assert said(source(url, tmp_path), "b" * 32, "more", parent="a" * 32)[0] == "1 so far"


def test_a_file_is_for_this_user_alone(tmp_path: Path) -> None:
    said(source("sqlite:///state.db", tmp_path), "a" * 32, "hi")
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["mysql://host", "sqlite://", "nothing"])
def test_what_names_no_saver_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="STREAM_CHECKPOINTS"):
        open_checkpoints(url, str(tmp_path))
    assert open_checkpoints("", str(tmp_path)) is None
