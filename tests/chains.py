"""An app of chains for fault tests: `gunicorn tests.chains:app`."""

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
    """Two nodes, one after the other, which ask the model by their names."""
    graph = StateGraph(MessagesState)
    for name, before in (("first", START), ("second", "first")):
        graph.add_node(name, lambda state, name=name: {"messages": [model.invoke(name)]})
        graph.add_edge(before, name)
    return graph


stream.add("steps", steps().compile(), restarts=2)


@stream.chain("count")
def count(question: str) -> Iterator[str]:
    """`<numbers> <seconds>`: so many numbers, with that pause after each; without, no pause."""
    numbers, _, pause = question.partition(" ")
    for number in range(int(numbers)):
        yield f"{number} "
        if pause:
            time.sleep(float(pause))
