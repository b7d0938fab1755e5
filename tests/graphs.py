"""An app of graphs that call the scripted provider: `gunicorn tests.graphs:app`.

`GET /greenlets` returns the number of greenlets of the worker, for tests that look for leaks.
"""

from __future__ import annotations

import gc
import operator
import os
import time
from typing import Annotated, Any, TypedDict

import gevent
from flask import Flask
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt

from flask_stream import FlaskStream

#: Seconds for which the tool `wait` waits.
LONG = 60.0


class Thought(TypedDict):
    """A question and the answers of the nodes."""

    question: str
    answers: Annotated[list[str], operator.add]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def wait() -> str:
    """Wait for a long time."""
    time.sleep(LONG)
    return "done"


def think(model: Runnable[Any, Any], prefix: str = "") -> RunnableLambda[Thought, dict[str, Any]]:
    """Return a node that sends the question to the model, after a prefix."""

    def think(state: Thought) -> dict[str, Any]:
        return {"answers": [model.invoke(prefix + state["question"]).text]}

    return RunnableLambda(think)


def fan(model: Runnable[Any, Any]) -> StateGraph[Thought]:
    """Return a graph of two parallel nodes that call the model."""
    graph = StateGraph(Thought)
    for name in ("left", "right"):
        graph.add_node(name, think(model, f"{name}: "))
        graph.add_edge(START, name)
    return graph


def nested(model: Runnable[Any, Any]) -> StateGraph[Thought]:
    """Return a graph in which `fan` is a node, and which calls it from another node, too."""
    inner = fan(model).compile()

    def call(state: Thought) -> dict[str, Any]:
        question = "called: " + state["question"]
        return {"answers": inner.invoke({"question": question, "answers": []})["answers"]}

    graph = StateGraph(Thought)
    graph.add_node("fan", inner)
    graph.add_node("call", call)
    graph.add_edge(START, "fan")
    graph.add_edge(START, "call")
    return graph


def agent(model: ChatOpenAI, *more: BaseTool) -> StateGraph[MessagesState]:
    """Return a graph in which a model calls tools, in parallel, until it calls none."""
    tools = [add, wait, *more]
    bound = model.bind_tools(tools)
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph


def careful() -> StateGraph[MessagesState]:
    """Return a graph that interrupts once to ask whether, and once to ask how often."""

    def ask(state: MessagesState) -> dict[str, Any]:
        whether = interrupt({"sure": state["messages"][-1].content})
        often = interrupt("how often?") if whether == "yes" else 0
        return {"messages": [AIMessage(f"{whether}, {often}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    return graph


def create_app() -> Flask:
    """Return the app. `OPENAI_BASE_URL` is the address of the provider."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    stream = FlaskStream(app)
    model = ChatOpenAI(
        model="scripted",
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=lambda: "test",
        max_retries=0,
        stream_usage=True,
    )
    stream.add("fan", fan(model).compile())
    stream.add("nested", nested(model).compile())
    stream.add("agent", agent(model).compile())
    stream.add("careful", careful().compile(checkpointer=InMemorySaver()))
    stream.add("both", RunnableParallel(left=model, right=model))

    @app.get("/greenlets")
    def greenlets() -> dict[str, int]:
        gc.collect()
        found = [each for each in gc.get_objects() if issubclass(type(each), gevent.Greenlet)]
        return {"count": len([greenlet for greenlet in found if not greenlet.dead])}

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return create_app()
    raise AttributeError(name)
