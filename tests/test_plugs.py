"""Plugs of others: the blocks of CONTRIBUTING.md, registered and used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from langgraph.graph import MessagesState, StateGraph

from flask_stream import ConfigError, FlaskStream, registry
from flask_stream.service import Service

from .server import ROOT
from .sse import Parser

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
#: A block of Python by the heading that it stands under.
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", TEXT, re.M | re.S))


def run_block(heading: str, **names: Any) -> dict[str, Any]:
    """Run the block under a heading; return its names."""
    exec(compile(BLOCKS[heading], f"CONTRIBUTING.md, {heading}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after a test what it has registered."""
    for name in ("_stores", "_checkpoints", "_dialects"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    monkeypatch.setattr(registry, "_sources", list(registry._sources))


Make = Callable[..., tuple[Flask, FlaskStream]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes an app with an extension; it is closed at the end of the test."""
    made: list[Flask] = []

    def make(**settings: Any) -> tuple[Flask, FlaskStream]:
        app = Flask(__name__)
        stream = FlaskStream(app, **{"store": "memory://", "checkpoints": "", **settings})
        stream.add("shout", lambda question: [f"{question} "] * 2)
        made.append(app)
        return app, stream

    yield make
    for app in made:
        service: Service = app.extensions["flask_stream"]
        service.close()


def answer(app: Flask, chain: str, format: str = "native") -> str:
    """The text of a chain's answer."""
    asked = {"question": "yes", "format": format}
    with app.test_client().post(f"/stream_{chain}", json=asked) as response:
        assert response.status_code == 200, response.data
        events = Parser().feed(response.data)
    if format == "native":
        chunks = [json.loads(event.data) for event in events if event.type == "message"]
        return "".join(chunk["content"] for chunk in chunks)
    return "".join(event.data for event in events)


def test_every_kind_has_a_block() -> None:
    kinds = ("store", "checkpointer", "source", "dialect", "transport")
    assert list(BLOCKS) == [f"Add a {kind}" for kind in kinds]


def test_a_store(make: Make) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a store"):
        make(store="archive://2026")
    kind = run_block("Add a store")["ArchiveStore"]
    app, _ = make(store="archive://2026")
    assert type(app.extensions["flask_stream"].runs.store) is kind
    assert answer(app, "shout") == "yes yes "


def test_a_checkpointer(make: Make) -> None:
    saver = run_block("Add a checkpointer")["saver"]
    app, stream = make(checkpoints="shelf://any")
    graph = StateGraph(MessagesState)
    graph.add_node("node", lambda state: {"messages": [("ai", "yes")]})
    graph.add_edge("__start__", "node")
    stream.add("graph", graph.compile())
    assert answer(app, "graph") == "yes"
    assert list(saver.list(None))


def test_a_source(make: Make) -> None:
    app, stream = make()
    with pytest.raises(ConfigError, match="no stream method"):
        stream.add("list", ["so ", "be ", "it"])
    run_block("Add a source")
    stream.add("list", ["so ", "be ", "it"])
    assert answer(app, "list") == "so be it"
    assert answer(app, "shout") == "yes yes "  # other chains are still what they were


def test_a_dialect(make: Make) -> None:
    run_block("Add a dialect")
    app, _ = make()
    assert answer(app, "shout", "shout") == "YES YES "


def test_a_transport(make: Make) -> None:
    app, _ = make()
    run_block("Add a transport", app=app)
    client = app.test_client()
    run = client.post("/runs", json={"chain": "shout", "input": "yes"}).get_json()["run"]
    with client.get(f"/lines/{run}") as response:
        lines = [json.loads(line) for line in response.get_data(as_text=True).splitlines()]
    assert lines[0]["run"] == run
    assert [line["content"] for line in lines if "content" in line] == ["yes ", "yes "]
    assert lines[-1]["status"] == "done"
    assert client.get("/lines/" + "0" * 32).status_code == 404
