"""The extension in an app of one's own: plain threads, Flask's own test client, no server."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from flask import Flask, render_template
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

import flask_stream
from flask_stream import Cache, ConfigError, FlaskStream, Input, Turn, create_app
from flask_stream.errors import BadRequest
from flask_stream.service import Service

from .sse import Parser, ServerSentEvent

STATIC = Path(flask_stream.__file__).parent / "static"


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 10
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing is set but where logs go: nowhere."""
    for name in list(os.environ):
        if name.startswith(("FLASK_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLASK_STREAM_STORE", "memory://")


class Make(Protocol):
    """Makes an app, of this extension or of a new one, that is closed at the end of the test."""

    def __call__(self, stream: FlaskStream | None = None, **config: Any) -> Flask: ...


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Flask] = []

    def make(stream: FlaskStream | None = None, **config: Any) -> Flask:
        app = Flask(__name__)
        app.config.update({"STREAM_STORE": "memory://"} | config)
        (stream or FlaskStream()).init_app(app)
        made.append(app)
        return app

    yield make
    for app in made:
        service(app).close()


@pytest.fixture
def site() -> Iterator[Flask]:
    """The whole service, as `create_app` makes it."""
    app = create_app()
    yield app
    service(app).close()


def service(app: Flask) -> Service:
    found: Service = app.extensions["flask_stream"]
    return found


def shout(question: str) -> Iterator[str]:
    yield from (word.upper() + " " for word in question.split())


def ask(app: Flask, chain: str, question: str = "so be it") -> list[ServerSentEvent]:
    with app.test_client().post(f"/stream_{chain}", json={"question": question}) as response:
        assert response.status_code == 200, response.data
        return Parser().feed(response.data)


class Seen(TypedDict):
    question: str


def graph(node: Any = lambda state: {"question": "!"}) -> Any:
    """A compiled graph of one node."""
    made = StateGraph(Seen)
    made.add_node("node", node)
    made.add_edge("__start__", "node")
    return made.compile()


def threads(file: Path) -> int:
    """How many conversations a file of checkpoints has something of."""
    with closing(sqlite3.connect(file)) as connection:
        query = "SELECT count(DISTINCT thread_id) FROM checkpoints"
        return int(connection.execute(query).fetchone()[0])


def said(events: list[ServerSentEvent]) -> str:
    return "".join(json.loads(event.data).get("content", "") for event in events)


# One extension, its apps


def test_a_function_streams_on_plain_threads(make: Make) -> None:
    stream = FlaskStream()
    stream.add("shout", shout)
    events = ask(make(stream), "shout")
    types = ["start", "message_start", "message", "message", "message", "end"]
    assert [event.type for event in events] == types
    assert said(events) == "SO BE IT "
    assert json.loads(events[-1].data) == {"status": "done", "finish_reason": None, "error": None}
    run = json.loads(events[0].data)["run"]
    assert [event.id for event in events] == [f"{run}:{seq}" for seq in range(1, 7)]


def test_a_run_can_be_read_again_and_stays_the_same(make: Make) -> None:
    asked: list[str] = []

    def chain(question: str) -> Iterator[str]:
        asked.append(question)
        yield question

    stream = FlaskStream()
    stream.add("echo", chain)
    app = make(stream)
    events = ask(app, "echo")
    run = json.loads(events[0].data)["run"]
    with app.test_client().get(f"/runs/{run}/events") as response:
        assert Parser().feed(response.data) == events
    headers = {"Last-Event-ID": events[2].id}
    with app.test_client().get("/stream_echo?question=x", headers=headers) as response:
        assert Parser().feed(response.data) == events[3:]
    assert asked == ["so be it"]


def test_apps_of_one_extension_have_services_of_their_own(make: Make) -> None:
    stream = FlaskStream()
    stream.add("shout", shout)
    one, other = make(stream, STREAM_TITLE="One"), make(stream, STREAM_TITLE="Other")
    assert service(one).runs is not service(other).runs
    assert service(one).runs.store is not service(other).runs.store
    assert [service(app).settings.title for app in (one, other)] == ["One", "Other"]
    run = json.loads(ask(one, "shout")[0].data)["run"]
    assert one.test_client().get(f"/runs/{run}").status_code == 200
    assert other.test_client().get(f"/runs/{run}").status_code == 404
    assert said(ask(other, "shout")) == "SO BE IT "


def test_one_app_goes_on_when_another_is_closed(make: Make) -> None:
    stream = FlaskStream()
    stream.add("shout", shout)
    one, other = make(stream), make(stream)
    ask(one, "shout")
    service(one).close()
    assert said(ask(other, "shout")) == "SO BE IT "
    refused = one.test_client().post("/stream_shout", json={"question": "?"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("added", ["before", "after"])
def test_each_app_keeps_its_graphs_state_itself(make: Make, tmp_path: Path, added: str) -> None:
    stream = FlaskStream()
    if added == "before":
        stream.add("it", graph())
    files = [tmp_path / "one.db", tmp_path / "other.db"]
    one, other = (make(stream, STREAM_CHECKPOINTS=f"sqlite:///{file}") for file in files)
    if added == "after":
        stream.add("it", graph())
    ask(one, "it")
    assert threads(files[0]) == 1
    assert not files[1].exists()
    ask(other, "it")
    ask(other, "it")
    assert [threads(file) for file in files] == [1, 2]
    service(one).close()
    ask(other, "it")
    assert [threads(file) for file in files] == [1, 3]


def test_one_app_may_keep_state_and_another_none(make: Make) -> None:
    stream = FlaskStream()
    stream.add("it", graph(lambda state: {"question": interrupt("Sure?")}))
    for url, status in (("memory://", 201), ("", 409), ("memory://", 201)):
        client = make(stream, STREAM_CHECKPOINTS=url).test_client()
        run = client.post("/runs", json={"chain": "it", "input": "x"}).get_json()["run"]
        assert '"interrupted"' in client.get(f"/runs/{run}/events").text
        answer = {"chain": "it", "parent": run, "resume": "yes"}
        answered = client.post("/runs", json=answer)
        assert answered.status_code == status, answered.text


def test_a_closed_service_has_no_checkpoints_open(make: Make, tmp_path: Path) -> None:
    file = (tmp_path / "it.db").resolve()
    stream = FlaskStream()
    stream.add("it", graph())
    app = make(stream, STREAM_CHECKPOINTS=f"sqlite:///{file}")

    def is_open() -> bool:
        return file in {path.resolve() for path in Path("/proc/self/fd").iterdir()}

    ask(app, "it")
    assert is_open()
    service(app).close()
    assert not is_open()
    with pytest.raises(RuntimeError, match="closed"):
        service(app).checkpoints.saver_for(graph())


def test_an_apps_checkpoints_are_opened_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_stream.service.find_spec", lambda name: name == "langgraph" or None)
    told: list[str] = []
    monkeypatch.setattr("flask_stream.service.logger.warning", told.append)
    stream = FlaskStream()
    stream.add("one", graph())
    stream.add("other", graph())
    app = make(stream)
    ask(app, "one")
    ask(app, "other")
    assert told == ["the state of graphs is not kept: pip install 'flask-llm-stream[graph]'"]


def test_the_extension_keeps_no_app() -> None:
    app = Flask(__name__)
    stream = FlaskStream(app, store="memory://")
    service(app).close()
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    assert stream


# Chains


def test_chains_are_added_before_and_after_the_app(make: Make) -> None:
    stream = FlaskStream()
    stream.add("before", shout)
    app = make(stream)
    stream.add("after", shout)
    assert said(ask(app, "before")) == said(ask(app, "after")) == "SO BE IT "
    assert app.test_client().post("/stream_never", json={"question": "?"}).status_code == 404


def test_the_decorator_leaves_the_function_as_it_is(make: Make) -> None:
    stream = FlaskStream()
    assert stream.chain("shout")(shout) is shout
    assert list(shout("so")) == ["SO "]
    assert said(ask(make(stream), "shout")) == "SO BE IT "


def test_input_says_how_a_question_is_put(make: Make) -> None:
    prompt = ChatPromptTemplate.from_template("A {mood} joke about {topic}")
    stream = FlaskStream()
    stream.add("joke", prompt, input=lambda input: {"mood": "sad", "topic": input.question})
    (custom,) = [event for event in ask(make(stream), "joke", "rain") if event.type == "custom"]
    assert "A sad joke about rain" in custom.data


NAMES = [
    "",
    "Chat",
    "chat bot",
    "chat/bot",
    "-chat",
    "_chat",
    "chat\n",
    "ch\u00e4t",
    "a" * 65,
    "..",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_can_be_in_no_url_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match="has a name that cannot be part of a URL: use up to 64 of"
    ) as error:
        FlaskStream().add(name, shout)
    assert repr(name) in str(error.value)


def test_a_chain_is_added_once(make: Make) -> None:
    stream = FlaskStream()
    stream.add("shout", shout)
    with pytest.raises(ConfigError, match="'shout' has already been added"):
        stream.add("shout", lambda question: [question])
    assert said(ask(make(stream), "shout")) == "SO BE IT "


@pytest.mark.parametrize("thing", [None, 5, "text", ["a"], object()])
def test_what_is_no_chain_is_refused(thing: Any) -> None:
    stream = FlaskStream()
    with pytest.raises(ConfigError, match=r"'chat' is .* no stream method and is not a function"):
        stream.add("chat", thing)
    stream.add("chat", shout)  # the name is still free


def test_a_chain_of_two_unknown_variables_says_which(make: Make) -> None:
    prompt = ChatPromptTemplate.from_template("A {mood} joke about {topic}")
    with pytest.raises(
        ConfigError, match=r"'joke' cannot take a question: it takes mood, topic: .*input="
    ):
        FlaskStream().add("joke", prompt)


CACHE = "seconds, up to 315360000, or a Cache(seconds, shared=True or False, version='…')"


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("restarts", -1, "a whole number, 0 or more"),
        ("restarts", "3", "a whole number, 0 or more"),
        ("restarts", True, "a whole number, 0 or more"),
        ("multitask", "drop", "one of refuse, queue, interrupt, replace"),
        ("history_tokens", -1, "a whole number, 0 or more, or None"),
        ("history_tokens", 1.5, "a whole number, 0 or more, or None"),
        ("cache", "shared", CACHE),
        ("cache", True, CACHE),
        ("cache", -1, CACHE),
        ("cache", float("nan"), CACHE),
        ("cache", {"seconds": 5}, CACHE),
        ("cache", Cache(float("inf")), CACHE),
        ("cache", Cache(60, shared="yes"), CACHE),  # type: ignore[arg-type]
        ("cache", Cache(60, version=2), CACHE),  # type: ignore[arg-type]
    ],
)
def test_an_option_that_cannot_be_is_told(option: str, value: Any, wanted: str) -> None:
    stream = FlaskStream()
    with pytest.raises(ConfigError) as error:
        stream.add("chat", shout, **{option: value})
    assert str(error.value) == f"chain 'chat' has {option}={value!r}, and should have {wanted}"
    stream.add("chat", shout)  # the name is still free


@pytest.mark.parametrize("options", [{"input": lambda input: 1 / 0}, {"state": ["a"]}])
def test_a_function_takes_no_option_that_would_be_lost(options: dict[str, Any]) -> None:
    stream = FlaskStream()
    with pytest.raises(ConfigError, match=r"'fn' is a function: .*name its parameter `input`"):
        stream.chain("fn", **options)(shout)
    stream.add("fn", shout, state=False)


def test_a_runnable_that_is_no_graph_has_no_state() -> None:
    with pytest.raises(ConfigError, match="'it' is not a graph: remove state="):
        FlaskStream().add("it", RunnableLambda(lambda text: text), state=True)


async def later(question: str) -> str:
    return question


async def yielding(question: str) -> AsyncIterator[str]:
    yield question


class Later:
    async def __call__(self, question: str) -> str:
        return question


@pytest.mark.parametrize(
    "function", [later, yielding, partial(yielding), Later(), Later().__call__]
)
def test_what_is_async_is_told_when_it_is_added(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"is async: write it with `def`"):
        FlaskStream().add("fn", function)


def test_a_function_says_itself_what_it_takes(make: Make) -> None:
    class Count:
        turns = 1

        def check(self, value: dict[str, Any]) -> None:
            if "word" not in value:
                raise BadRequest("A word, please.", field="input.word")

        def check_history(
            self, value: dict[str, Any], earlier: Callable[[], Sequence[Turn]]
        ) -> None:
            if any(turn.answer.startswith(value["word"]) for turn in earlier()[-1:]):
                raise BadRequest("Another word, please.", field="input.word")

        def __call__(self, input: Input) -> str:
            return f"{input.value['word']} after {len(input.history)}"

    stream = FlaskStream()
    stream.add("count", Count())
    client = make(stream).test_client()

    def post(input: Any, **more: str) -> dict[str, Any]:
        told: dict[str, Any] = client.post(
            "/runs", json={"chain": "count", "input": input, **more}
        ).get_json()
        return told

    assert post("one")["detail"] == "A word, please."
    follows: dict[str, str] = {}
    for word, before in (("one", 0), ("two", 1), ("three", 1)):
        run = post({"word": word}, **follows)["run"]
        assert f"{word} after {before}" in client.get(f"/runs/{run}/events").text
        follows = {"parent": run}
    assert post({"word": "three"}, **follows)["detail"] == "Another word, please."


# The package


def test_the_package_exports_this_and_nothing_else() -> None:
    assert flask_stream.__all__ == [
        "create_app",
        "FlaskStream",
        "Cache",
        "Input",
        "Turn",
        "ConfigError",
        "ErrorCode",
        "RequestError",
        "RunFailed",
        "StoreError",
        "StreamError",
    ]
    assert all(hasattr(flask_stream, name) for name in flask_stream.__all__)


# The page


def test_an_app_of_ones_own_keeps_its_front_page(make: Make) -> None:
    assert make().test_client().get("/").status_code == 404
    app = make()
    app.add_url_rule("/", view_func=lambda: "mine")
    assert app.test_client().get("/").text == "mine"


def test_the_page_is_for_who_wants_it(make: Make) -> None:
    assert make(STREAM_PAGE=True, STREAM_TITLE="Ask us").test_client().get("/").status_code == 200
    app = create_app(page=False)
    assert app.test_client().get("/").status_code == 404
    service(app).close()


def test_an_apps_own_templates_do_not_replace_the_pages(make: Make, tmp_path: Path) -> None:
    for name in ("base.html", "chat.html", "_composer.html", "_turn.html"):
        (tmp_path / name).write_text("the app's own")
    app = make(STREAM_PAGE=True)
    app.template_folder = str(tmp_path)
    app.add_url_rule("/own", view_func=lambda: render_template("base.html"))
    client = app.test_client()
    assert client.get("/own").text == "the app's own"
    page = client.get("/").text
    assert '<form id="composer"' in page
    assert '<template id="turn">' in page
    assert "the app's own" not in page


def test_an_app_can_extend_the_page(make: Make, tmp_path: Path) -> None:
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream/base.html").write_text("ours: {% block main %}{% endblock %}")
    app = make(STREAM_PAGE=True)
    app.template_folder = str(tmp_path)
    page = app.test_client().get("/").text
    assert page.startswith("ours: ")
    assert 'id="turns"' in page


def test_the_service_has_the_page(site: Flask) -> None:
    page = site.test_client().get("/")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    assert "<title>flask_stream</title>" in page.text
    assert "/static/stream/stream.js" in page.text


@pytest.mark.parametrize("name", sorted(path.name for path in STATIC.glob("*.*s")))
def test_the_pages_files_are_served(site: Flask, name: str) -> None:
    with site.test_client().get(f"/static/stream/{name}") as file:
        assert file.status_code == 200
        assert file.mimetype in ("text/javascript", "text/css")
        assert file.data == (STATIC / name).read_bytes()


def test_no_other_file_is(site: Flask) -> None:
    for path in ("../__init__.py", "%2e%2e/config.py", "stream.py", ""):
        assert site.test_client().get(f"/static/stream/{path}").status_code == 404


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        (StateGraph(MessagesState), "is a graph that is not compiled"),
        (lambda: iter([]), "one argument, the question"),
        (lambda question, history: iter([]), "one argument, the question"),
    ],
)
def test_what_cannot_be_asked_is_told_when_it_is_added(make: Make, chain: Any, told: str) -> None:
    stream = FlaskStream()
    make(stream)
    with pytest.raises(ConfigError, match=f"chain 'it' {told}|chain 'it' .*{told}"):
        stream.add("it", chain)


def test_a_decorator_without_a_name_says_so() -> None:
    decorate: Any = FlaskStream().chain
    with pytest.raises(ConfigError, match="needs a name"):
        decorate(lambda question: [question])


def test_who_is_revoked_has_to_be_a_principal(make: Make) -> None:
    stream = FlaskStream()
    with make(stream).app_context(), pytest.raises(ValueError, match="user:<id>"):
        stream.revoke("bob")


def test_settings_without_their_prefix_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STREAM_MODEL", "openai:other")
    monkeypatch.setenv("FLASK_STREAM_MODEL", "local:smollm2")
    monkeypatch.setenv("STREAM_HEARTBEAT", "abc")
    app = create_app(start_limit="", address_limit="")
    app.extensions["flask_stream"].close()
    told = [record.getMessage() for record in caplog.records if "environment" in record.msg]
    assert told == ["STREAM_HEARTBEAT in the environment is not read: it is FLASK_STREAM_HEARTBEAT"]


def test_a_prompt_of_two_variables_says_what_it_wants(make: Make) -> None:
    stream = FlaskStream()
    prompt = ChatPromptTemplate.from_template("{question} in {lang}")
    stream.add("it", prompt | RunnableLambda(lambda value: value.to_string()))
    client = make(stream).test_client()
    refused = client.post("/runs", json={"chain": "it", "input": "Why?"})
    assert refused.status_code == 400
    assert "takes" in refused.get_json()["detail"]
    both = {"question": "Why?", "lang": "German"}
    assert client.post("/runs", json={"chain": "it", "input": both}).status_code == 201


def test_a_graph_is_given_a_part_of_its_state(make: Make) -> None:
    class State(TypedDict):
        topic: str
        out: str

    graph = StateGraph(State)
    graph.add_node("write", lambda state: {"out": state["topic"]})
    graph.add_edge("__start__", "write")
    stream = FlaskStream(checkpoints="")
    stream.add("it", graph.compile(), state=True)
    client = make(stream).test_client()
    assert client.post("/runs", json={"chain": "it", "input": {"topic": "x"}}).status_code == 201
    refused = client.post("/runs", json={"chain": "it", "input": "x"})
    assert refused.get_json()["detail"] == "This chain takes topic, out: send an object as input."


def test_a_graph_that_keeps_no_state_cannot_be_answered(make: Make) -> None:
    class State(TypedDict):
        question: str

    graph = StateGraph(State)
    graph.add_node("ask", lambda state: {"question": str(interrupt("Sure?"))})
    graph.add_edge("__start__", "ask")
    stream = FlaskStream(checkpoints="")
    stream.add("it", graph.compile())
    client = make(stream).test_client()
    run = client.post("/runs", json={"chain": "it", "input": {"question": "x"}}).get_json()["run"]
    assert '"interrupted"' in client.get(f"/runs/{run}/events").text
    answer = {"chain": "it", "parent": run, "resume": "yes"}
    refused = client.post("/runs", json=answer)
    assert (refused.status_code, refused.get_json()["field"]) == (409, "resume")
    assert "saves no state" in refused.get_json()["detail"]


@pytest.mark.parametrize("url", ["mysql://host/db", "redis://host:port", "sqlite:/"])
def test_a_url_of_no_checkpointer_is_told_at_start(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FlaskStream(Flask(__name__), store="memory://", checkpoints=url)
    assert caught.value.setting == "STREAM_CHECKPOINTS"


def test_checkpoints_without_langgraph_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_stream.service.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"flask-llm-stream\[graph\]"):
        FlaskStream(Flask(__name__), store="memory://", checkpoints="memory://")


def test_history_is_as_long_as_its_budget(make: Make) -> None:
    told: dict[str, list[str]] = {"usual": [], "short": [], "none": []}
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), ("human", "{question}")]
    )
    stream = FlaskStream(history_tokens=200, max_question=2000)
    for name, most in ("usual", None), ("short", 60), ("none", 0):

        def answer(asked: Any, name: str = name) -> str:
            told[name] = [one.content for one in asked.to_messages()]
            return "yes"

        stream.add(name, prompt | RunnableLambda(answer), history_tokens=most)
    client = make(stream, SECRET_KEY="k" * 32).test_client()
    client.get("/", headers={"Sec-Fetch-Site": "same-origin"})
    for name in told:
        parent = None
        for n in range(6):
            asked = {"chain": name, "input": f"{n} " + "word " * 30, "parent": parent}
            said = client.post("/runs", json=asked).get_json()
            assert "run" in said, said
            parent = said["run"]
            assert "event: end" in client.get(f"/runs/{parent}/events").text
    assert {name: [text[0] for text in said] for name, said in told.items()} == {
        "usual": [*"1y2y3y4y5"],
        "short": ["4", "y", "5"],
        "none": ["5"],
    }
