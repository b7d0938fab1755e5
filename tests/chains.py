"""An app of chains for tests of failures: `gunicorn tests.chains:app`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from flask_stream import FlaskStream

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app)

model = ChatOpenAI(
    model="scripted",
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key=lambda: "test",
    max_retries=0,
)
stream.add("chat", model)
stream.add("again", model, restarts=1)


def steps() -> StateGraph[MessagesState]:
    """Return a graph of two consecutive nodes that send their names to the model."""
    graph = StateGraph(MessagesState)
    for name, before in (("first", START), ("second", "first")):
        graph.add_node(name, lambda state, name=name: {"messages": [model.invoke(name)]})
        graph.add_edge(before, name)
    return graph


stream.add("steps", steps().compile(), restarts=2)


@stream.chain("count")
def count(question: str) -> Iterator[str]:
    """Count numbers for `<count> <seconds>`, with an optional pause after each number."""
    numbers, _, pause = question.partition(" ")
    for number in range(int(numbers)):
        yield f"{number} "
        if pause:
            time.sleep(float(pause))
