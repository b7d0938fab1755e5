"""An app whose chains raise errors that contain a secret key: `gunicorn tests.leaks:app`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from flask import Flask, Request
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import ToolException, tool
from langchain_openai import ChatOpenAI

from flask_stream import FlaskStream
from flask_stream.json_logs import configure_logging

from .provider import CANARY

configure_logging()
app = Flask(__name__)
app.config.from_prefixed_env()


def whose(request: Request) -> str | None:
    """Return the caller's user id. Raises LookupError for `Cookie: fail=1`."""
    if "fail" in request.cookies:
        raise LookupError(f"no directory at ldap://reader:{CANARY}@directory")
    return "somebody"


stream = FlaskStream(app, auth=whose)


class Unspeakable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError(CANARY)


@tool
def search(query: str) -> str:
    """Search."""
    raise RuntimeError(f"401 for key {CANARY}\nat https://search.example/?key={CANARY}")


@tool
def told(query: str) -> str:
    """Search, and report the error to the model."""
    raise ToolException(f"401 for key {CANARY}")


told.handle_tool_error = True


@stream.chain("tool")
def in_a_tool(question: str) -> Iterator[str]:
    yield "Let me see. "
    yield search.invoke({"query": question})


@stream.chain("thread")
def in_a_thread(question: str) -> Iterator[str]:
    thread = threading.Thread(target=search.invoke, args=({"query": question},))
    thread.start()
    thread.join()
    yield "It says nothing."


@stream.chain("told-tool")
def in_what_a_tool_tells(question: str) -> Iterator[str | BaseMessage]:
    call = {"name": "told", "args": {"query": question}, "id": "call-1", "type": "tool_call"}
    message = told.invoke(call)
    assert isinstance(message, ToolMessage)
    assert CANARY in message.content
    yield message
    yield "That did not work."


@stream.chain("at-once")
def at_once(question: str) -> Iterator[str]:
    raise ValueError({"api_key": CANARY})


@stream.chain("unspeakable")
def unspeakable(question: str) -> Iterator[str]:
    yield "One "
    raise Unspeakable


@stream.chain("cause")
def with_a_cause(question: str) -> Iterator[str]:
    yield "One "
    try:
        raise ConnectionError(CANARY)
    except ConnectionError as error:
        raise RuntimeError("no connection") from error


@stream.chain("group")
def in_a_group(question: str) -> Iterator[str]:
    yield "One "
    raise ExceptionGroup("some failed", [RuntimeError(CANARY), RuntimeError("another")])


@stream.chain("exit")
def that_exits(question: str) -> Iterator[str]:
    yield "One "
    raise SystemExit(CANARY)


@stream.chain("wrong-type")
def of_another_type(question: str) -> Iterator[Any]:
    yield "One "
    yield {"key": CANARY}


@stream.chain("wrong-event")
def of_no_known_event(question: str) -> Iterator[Any]:
    yield "progress", {"done": CANARY, "total": CANARY}


@stream.chain("on-close")
def when_it_is_closed(question: str) -> Iterator[str]:
    try:
        yield "One "
        threading.Event().wait()
    finally:
        raise RuntimeError(CANARY)


def fail(value: object) -> object:
    raise RuntimeError(f"{CANARY} in a branch")


stream.add("branches", RunnableParallel(a=RunnableLambda(fail), b=RunnableLambda(fail)))
stream.add(
    "input",
    RunnableLambda(lambda value: value),
    input=lambda input: fail(input),
)
stream.add(
    "model",
    ChatPromptTemplate.from_template("{question}")
    | ChatOpenAI(
        model="scripted",
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=lambda: CANARY,
        max_retries=0,
    ),
)
