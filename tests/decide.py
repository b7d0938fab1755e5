"""An app with the page and an agent that asks for approval: `gunicorn tests.decide:app`."""

from __future__ import annotations

import os

from flask import Flask
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from flask_stream import FlaskStream

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app, page=True)


@tool
def send(to: str) -> str:
    """Send a letter."""
    return f"sent to {to}"


model = ChatOpenAI(
    model="scripted",
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key=lambda: "test",
    max_retries=0,
)
asking = HumanInTheLoopMiddleware(interrupt_on={"send": True})
stream.add("chat", create_agent(model, [send], middleware=[asking], checkpointer=InMemorySaver()))
