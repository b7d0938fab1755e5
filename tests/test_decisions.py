"""A graph that asks a person: approve, edit and reject a tool call, by HTTP and on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .chromium import *  # noqa: F403 - the browser's fixtures
from .chromium import ask, visit
from .provider import Provider, Script
from .server import Server, environment, gunicorn
from .sse import Stream, request

APPROVE: dict[str, Any] = {"type": "approve"}
EDIT: dict[str, Any] = {"type": "edit", "edited_action": {"name": "send", "args": {"to": "Bob"}}}
REJECT: dict[str, Any] = {"type": "reject", "message": "Not today."}


@pytest.fixture
def server(provider: Provider) -> Iterator[Server]:
    def script(asked: dict[str, Any]) -> Script:
        last = asked["messages"][-1]
        if last["role"] == "user":
            return Script([], tools=[("send", {"to": "Ann"})])
        return Script(["I heard: ", str(last["content"])])

    provider.script = script
    env = environment(OPENAI_BASE_URL=provider.url)
    with Server(gunicorn(app="tests.decide:app"), env) as server:
        yield server


def start(server: Server, **body: Any) -> Any:
    return request("POST", f"{server.url}/runs", json={"chain": "chat"} | body)


def said(server: Server, run: str) -> list[tuple[str, Any]]:
    with Stream(f"{server.url}/runs/{run}/events") as stream:
        return [(event.type, json.loads(event.data)) for event in stream.events()]


@pytest.mark.parametrize(
    ("decision", "heard"),
    [(APPROVE, "sent to Ann"), (EDIT, "sent to Bob"), (REJECT, "Not today.")],
)
def test_a_tool_call_is_approved_edited_or_rejected(
    server: Server, decision: dict[str, Any], heard: str
) -> None:
    first = start(server, input="Write to Ann.").json()["run"]
    events = said(server, first)
    (asked,) = [data for type, data in events if type == "interrupt"]
    assert asked["value"]["action_requests"][0]["args"] == {"to": "Ann"}
    assert events[-1] == ("end", {"status": "interrupted", "finish_reason": None, "error": None})
    second = start(server, resume={"decisions": [decision]}, parent=first).json()["run"]
    events = said(server, second)
    text = "".join(d["content"] for t, d in events if "content" in d and "message" in d)
    assert text.startswith("I heard: ")
    assert heard in text
    assert events[-1] == ("end", {"status": "done", "finish_reason": "stop", "error": None})


def test_an_answer_that_nobody_asked_for_is_refused(server: Server, provider: Provider) -> None:
    first = start(server, input="Write to Ann.").json()["run"]
    said(server, first)
    second = start(server, resume={"decisions": [APPROVE]}, parent=first).json()["run"]
    said(server, second)
    calls = len(provider.calls)
    for parent in (second, None):
        answer = start(server, resume="yes", parent=parent)
        assert (answer.status, answer.json()["field"]) == (409, "resume")
    both = start(server, resume="yes", input="no", parent=first)
    assert (both.status, both.json()["field"]) == (400, "input")
    assert len(provider.calls) == calls


@pytest.mark.parametrize(
    ("choice", "field", "text", "heard"),
    [
        ("approve", None, None, "sent to Ann"),
        ("edit", "Arguments", '{"to": "Bob"}', "sent to Bob"),
        ("reject", "Reason", "Not today.", "Not today."),
    ],
)
def test_on_the_page(
    server: Server, page: Page, choice: str, field: str | None, text: str | None, heard: str
) -> None:
    visit(page, server.url)
    ask(page, "Write to Ann.")
    form = page.locator("form.decision")
    form.get_by_label("Decision").select_option(choice)
    if field and text:
        form.get_by_label(field).fill(text)
    form.get_by_role("button", name="Send decision").click()
    answer = page.locator(".answer").last
    expect(answer).to_contain_text("I heard: ")
    expect(answer).to_contain_text(heard)
    assert 'send({"to":"Ann"})' in (page.locator(".answer").first.text_content() or "")
    # A reload shows it all again, the decision included.
    page.reload()
    expect(page.locator(".answer").last).to_contain_text(heard)
