"""Socket.IO on the real service: by the official clients, and packet by packet."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import socketio
from playwright.sync_api import Browser, Page, expect, sync_playwright

from flask_stream.errors import BadRequest
from flask_stream.events import Event, encode
from flask_stream.transports.socketio_packets import answer, packet, packets, told, understood

from . import people
from .people import NOBODY, NOWHERE, Sent, bearer, token, users
from .provider import Provider, Script
from .proxy import Proxy
from .server import Server, environment, gunicorn
from .sio import Client, ConnectError, Poll, Told, Turned, Wire
from .sites import ARGUMENTS, CHROMIUM
from .socketio_js import NPM, fetch
from .sse import request
from .test_websocket import (
    BODY,
    HEARTBEAT,
    LISTED,
    OWN,
    PATIENCE,
    WRITE,
    left,
    log_of,
    memory,
    run_of,
    wait_for,
    wires,
)
from .valkey import Valkey
from .ws import BINARY, TEXT, Ended, places, text_of

TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]]
#: What `io()` is given for them, and what it comes to.
WAYS = [
    ('{ transports: ["websocket"] }', "websocket"),
    ("", "websocket"),
    ('{ transports: ["polling"] }', "polling"),
]
ways = pytest.mark.parametrize(("options", "transport"), WAYS, ids=["websocket", "both", "polling"])
browsers = pytest.mark.skipif(
    CHROMIUM is None or NPM is None, reason="needs a browser, and npm for the official client"
)
transports = pytest.mark.parametrize("transports", TRANSPORTS, ids="+".join)
#: Either wire, packet by packet.
either = pytest.mark.parametrize("opened", [Wire, Poll])
Opened = Callable[..., Any]
#: What these types call `id` themselves.
OWN_ID = {"message": "message_id", "tool_call": "tool_call_id", "tool_result": "tool_call_id"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the official client for browsers is, once a test asks for it."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="session")
def official(folder: Path) -> Path:
    """The official client for browsers."""
    return fetch(folder)


@pytest.fixture(scope="module")
def _site(
    _provider: Provider, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    client = folder / "package" / "dist"
    made = wires(_provider, tmp_path_factory.mktemp("wires"), body_timeout=1.5, WIRES_CLIENT=client)
    with made as server:
        yield server


@pytest.fixture
def site(_site: Server, provider: Provider) -> Server:
    """One worker, whose time limits are short."""
    return _site


@pytest.fixture
def pages(site: Server, official: Path) -> Server:
    """The service, and the client that its page asks it for."""
    assert official.is_dir()
    return site


@contextmanager
def two_of(provider: Provider, folder: Path, **settings: object) -> Iterator[list[Server]]:
    """Two services with one store."""
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        made = [wires(provider, folder, **settings) for _ in "12"]
        yield list(pool.map(stack.enter_context, made))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page


def as_told(events: list[Told]) -> list[Told]:
    """A run's log, as Socket.IO has to tell it."""
    run, full, found = run_of(events[0]), "", []
    for event in events:
        type, data = event["type"], dict(event["data"])
        if type in OWN_ID:
            data[OWN_ID[type]] = data.pop("id")
        if type == "chunk" and data["kind"] == "text":
            full += data["content"]
        if type == "end" and data["error"] is None:
            data = {"full_response": full, "status": data["status"], "run": run}
        elif type == "end":
            type, error = "error", data["error"]
            data = {"error": error["message"], "code": error["code"], "run": run}
            data["retryable"] = error["retryable"]
        found.append({"id": event["id"], "type": type, "data": data})
    return found


def fresh(name: str = "r") -> str:
    """A run's id of one's own."""
    return f"{name * 8}{random.randrange(10**20):020}"


# Packets


def test_events_are_packets() -> None:
    run = "r" * 16
    events = [
        Event(1, "start", '{"run":"x"}'),
        Event(2, "message", '{"id":"m1","role":"assistant"}'),
        Event(3, "chunk", '{"content":"\\ud800","message":"m1","kind":"text"}'),
        Event(4, "tool_call", '{"id":"c1","name":"f","args":{"id":1}}'),
        Event(5, "tool_result", '{"id":"c1","name":"f","content":"x"}'),
        Event(6, "interrupt", '{"id":"i1","value":{}}'),
        Event(7, "custom", "{}"),
        Event(8, "end", '{"status":"done","error":null}'),
        Event(0, "end", encode({"status": "error", "error": {
            "code": "store_error", "message": "No.", "retryable": True}})),
    ]  # fmt: skip
    made = packets(run, events, lambda: "all of it")
    assert made[0] == '2["stream_start",{"id":"rrrrrrrrrrrrrrrr:1","run":"x"}]'
    assert made[6] == '2["stream_custom",{"id":"rrrrrrrrrrrrrrrr:7"}]'
    read = [json.loads(one.removeprefix("2")) for one in made]
    assert [name.removeprefix("stream_") for name, _ in read] == [
        "start", "message", "chunk", "tool_call", "tool_result", "interrupt", "custom", "end",
        "error",
    ]  # fmt: skip
    assert [data["id"] for _, data in read] == [*(f"{run}:{n}" for n in range(1, 9)), None]
    assert read[1][1]["message_id"] == "m1"
    assert (read[3][1]["tool_call_id"], read[3][1]["args"]) == ("c1", {"id": 1})
    assert read[4][1]["tool_call_id"] == "c1"
    assert read[5][1] == {"id": f"{run}:6", "interrupt_id": "i1", "value": {}}
    assert read[7][1] == {
        "id": f"{run}:8", "full_response": "all of it", "status": "done", "run": run,
    }  # fmt: skip
    assert read[8][1] == {
        "id": None, "error": "No.", "code": "store_error", "retryable": True, "run": run,
    }  # fmt: skip
    assert packet("error", told({"error": "x"})) == '2["stream_error",{"id": null, "error": "x"}]'


def test_the_whole_is_asked_for_at_a_good_end_alone() -> None:
    def never() -> str:
        raise AssertionError("nobody needs it")

    error = {"code": "chain_error", "message": "No.", "retryable": True}
    packets("r", [Event(1, "chunk", '{"content":"a"}')], never)
    packets("r", [Event(2, "end", encode({"status": "error", "error": error}))], never)


def test_the_whole_answer_is_what_was_said_since_it_was_begun() -> None:
    def chunk(text: str, kind: str = "text") -> Event:
        return Event(1, "chunk", encode({"content": text, "kind": kind}))

    said = [chunk("a"), Event(2, "reset", "{}"), chunk("hm", "reasoning"), chunk("b"), chunk("c")]
    assert answer(iter(said)) == "bc"
    assert answer(iter([])) == ""


def test_what_a_message_says() -> None:
    assert understood([], "question") == {}
    assert understood(["x"], "question") == {"question": "x"}
    assert understood([{"a": 1}], "question") == {"a": 1}
    none: list[list[Any]] = [[1], [None], [["x"]], ["x", "y"], [b"x"], [{}, {}]]
    for args in none:
        with pytest.raises(BadRequest) as refused:
            understood(args, "after")
        assert refused.value.field == "after"


# The official client


@transports
def test_the_official_client_is_told_a_run_by_its_log(
    site: Server, provider: Provider, transports: list[str]
) -> None:
    provider.script = Script(["a ", "b\n", "😀"])
    with Client(site.url, *transports) as client:
        assert client.transport == transports[-1]
        run = client.ask("What?")
        events = client.events(run)
        assert [event["type"] for event in events[:2]] == ["start", "message"]
        assert events[0]["data"]["input"] == {"question": "What?"}
        assert places(events) == list(range(1, len(events) + 1))
        assert events == as_told(log_of(site, run))
        assert events[-1]["data"] == {"full_response": "a b\n😀", "status": "done", "run": run}
        assert text_of(events) == "a b\n😀"
        # A second one on the same connection follows the first.
        provider.script = Script(["Yes"])
        second = client.events(client.ask({"message": "Really?"}))
        assert second[0]["data"]["parent"] == run
        assert second[0]["data"]["conversation"] == events[0]["data"]["conversation"]
        assert second[-1]["data"]["full_response"] == "Yes"
    said = [message["content"] for message in provider.calls[-1].json["messages"]]
    assert said == ["What?", "a b\n😀", "Really?"]
    assert len(provider.calls) == 2


@transports
def test_a_token_comes_before_the_next_is_said(
    site: Server, provider: Provider, transports: list[str]
) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with Client(site.url, *transports) as client:
        run = client.ask("What?")
        for count in range(1, 4):
            provider.allow()
            client.events(run, least=2 + count)
        assert client.events(run)[-1]["data"]["full_response"] == "abc"


@transports
def test_a_failed_answer_is_an_error_and_no_end(site: Server, transports: list[str]) -> None:
    with Client(site.url, *transports) as client:
        run = client.ask({"chain": "broken", "question": "x"})
        events = client.events(run)
        assert events == as_told(log_of(site, run))
        assert events[-1]["type"] == "error"
        assert events[-1]["data"] == {
            "error": "Something went wrong while answering.",
            "code": "chain_error",
            "retryable": True,
            "run": run,
        }
        assert text_of(events) == "One "
        assert client.told("stream_end") == []


def test_what_events_call_their_id_is_named_apart(site: Server) -> None:
    with Client(site.url, "websocket") as client:
        run = client.ask({"chain": "all", "question": "x"})
        events = client.events(run)
        assert events == as_told(log_of(site, run))
        data = {event["type"]: event["data"] for event in events}
        assert data["tool_call"]["tool_call_id"] == data["tool_result"]["tool_call_id"] == "call-1"
        assert data["tool_call"]["args"] == {"id": "inner"}
        assert data["custom"] == {"name": "weather", "value": {"id": "rain"}}
        assert data["message"]["message_id"] == data["chunk"]["message"]


@either
def test_runs_of_their_own_stand_side_by_side(
    site: Server, provider: Provider, opened: Opened
) -> None:
    provider.scripts = {
        name: Script([f"{name}{n} " for n in range(20)], delay=0.01) for name in ("a", "b", "c")
    }
    runs = {name: fresh(name) for name in ("a", "b", "c")}
    events: dict[str, list[Told]] = {run: [] for run in runs.values()}
    with opened(site.url) as client:
        client.connect()
        acks = [client.emit("stream_question", {"question": n, "run": r}) for n, r in runs.items()]
        order = []
        while sum(event["type"] == "end" for said in events.values() for event in said) < 3:
            event = client.event()
            order.append(run_of(event))
            events[order[-1]].append(event)
        assert order != sorted(order, key=order.index), "one after another"
        assert [client.acks[ack]["run"] for ack in acks] == list(runs.values())
        for name, run in runs.items():
            assert places(events[run]) == list(range(1, len(events[run]) + 1))
            assert events[run][-1]["data"]["full_response"] == text_of(events[run])
            assert text_of(events[run]) == "".join(f"{name}{n} " for n in range(20))
        # The same again is the same run; another question is refused.
        ack = client.emit("stream_question", {"question": "a", "run": runs["a"]})
        assert client.events() == events[runs["a"]]
        assert client.acks[ack]["run"] == runs["a"]
        ack = client.emit("stream_question", {"question": "other", "run": runs["a"]})
        error = client.event()
        assert (error["id"], error["type"]) == (None, "error")
        assert error["data"] | {"error": ""} == {
            "status": 409, "error": "", "field": "run", "run": runs["a"],
        }  # fmt: skip
        assert client.acknowledged(ack) == error["data"]
    assert len(provider.calls) == 3


@either
def test_a_new_question_waits_is_refused_or_interrupts(
    site: Server, provider: Provider, opened: Opened
) -> None:
    provider.scripts["one"] = Script(["a", "b"], stall=1)

    def status(event: Told) -> tuple[str, Any]:
        return event["type"], event["data"].get("status")

    with opened(site.url) as client:
        client.connect()
        client.emit("stream_question", "one")
        first = client.events("chunk")[0]["data"]["run"]
        client.emit("stream_question", "two")
        error = client.event()["data"]
        assert (error["status"], error["field"]) == (409, "conversation")
        client.emit("stream_question", {"question": "three", "multitask": "interrupt"})
        end, *events = client.events() + client.events()
        assert (run_of(end), end["data"]["status"]) == (first, "cancelled")
        assert events[0]["data"]["parent"] == first
        assert status(events[-1]) == ("end", "done")
        assert provider.calls[0].wait_closed()
    with opened(site.url) as client:
        client.connect()
        client.emit("stream_question", {"chain": "queue", "question": "one"})
        client.events("chunk")
        client.emit("stream_question", {"chain": "queue", "question": "two"})
        assert client.event()["type"] == "start"
        provider.release()
        assert [status(client.events()[-1]) for _ in "12"] == [("end", "done")] * 2


@either
def test_a_message_stops_a_run(site: Server, provider: Provider, opened: Opened) -> None:
    provider.script = Script(["a", "b"], stall=1)
    with opened(site.url) as client, opened(site.url) as other:
        client.connect()
        other.connect()
        for say in ("nothing", "text", "object", "other"):
            client.emit("stream_question", "stop this")
            run = run_of(client.events("chunk")[0])
            ways: dict[str, list[Any]] = {"nothing": [], "text": [run]}
            args = ways.get(say, [{"run": run}])
            stopping = other if say == "other" else client
            ack = stopping.emit("stream_cancel", *args)
            end = client.events()[-1]
            assert (run_of(end), end["data"]["status"]) == (run, "cancelled")
            assert end["data"]["full_response"] == "a"
            assert stopping.acknowledged(ack) == {"run": run, "status": "cancelled"}
            assert provider.calls[-1].wait_closed()
            # What has ended can be stopped as often as one likes.
            again = stopping.emit("stream_cancel", *args)
            assert stopping.acknowledged(again) == {"run": run, "status": "cancelled"}
        with opened(site.url) as idle:
            idle.connect()
            ack = idle.emit("stream_cancel")
            assert idle.event()["data"]["field"] == "run"
            assert idle.acknowledged(ack)["status"] == 400
    assert len(provider.calls) == 4


# Coming back


@either
@pytest.mark.parametrize("how", ["apart", "object", "text"])
def test_a_lost_connection_is_no_stop_and_a_new_one_resumes_exactly(
    site: Server, provider: Provider, opened: Opened, how: str
) -> None:
    provider.script = Script([f"word{n} " for n in range(30)], gated=True)
    events: list[Told] = []
    packets: list[str] = []
    run = ""
    for step in range(6):
        with opened(site.url) as client:
            client.connect()
            if step == 0:
                client.emit("stream_question", "go on")
            else:
                said: dict[str, Any] = {
                    "apart": {"run": run, "after": len(events)},
                    "object": {"after": events[-1]["id"]},
                    "text": events[-1]["id"],
                }
                ack = client.emit("stream_resume", said[how])
                assert client.acknowledged(ack, 10) == {"run": run}
            provider.allow(5)
            while not text_of(events).endswith(f"word{step * 5 + 4} "):
                events.append(client.event())
                run = run_of(events[0])
            if step == 5:
                events += client.events()
            packets += client.packets
    assert places(events) == list(range(1, len(events) + 1))
    assert events == as_told(log_of(site, run))
    assert events[-1]["data"]["full_response"] == "".join(f"word{n} " for n in range(30))
    with opened(site.url) as client:
        client.connect()
        client.emit("stream_resume", {"run": run, "after": 0})
        assert client.events() == events
        assert client.packets == packets
        # In the middle of it, the whole is the whole.
        client.emit("stream_resume", {"run": run, "after": 20})
        assert client.events() == events[20:]
        # What is complete is said to be.
        ack = client.emit("stream_resume", {"run": run, "after": len(events)})
        complete = {"run": run, "seq": len(events)}
        assert client.event() == {"id": None, "type": "complete", "data": complete}
        assert client.acknowledged(ack) == {"run": run, "complete": True}
    assert len(provider.calls) == 1


def test_following_again_on_one_connection_begins_at_the_new_place(site: Server) -> None:
    with Wire(site.url) as client:
        client.connect()
        client.emit("stream_question", {"chain": "count", "question": "300 0.005"})
        run = run_of(client.event())
        for _ in range(20):
            client.emit("stream_resume", {"run": run, "after": 0})
        events = client.events()
    # From the last of the starts on, everything is there once.
    last = max(place for place, event in enumerate(events) if event["type"] == "start")
    assert places(events[last:]) == list(range(1, len(events) - last + 1))
    assert text_of(events[last:]) == "".join(f"{number} " for number in range(300))


def test_a_run_goes_on_without_its_connection(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with Wire(site.url) as client:
        client.connect()
        client.emit("stream_question", "go on")
        provider.allow()
        run = run_of(client.events("chunk")[0])
        client.reset()
    wait_for(lambda: left(site)["clients"] == 0)
    provider.allow(2)
    events = log_of(site, run)
    assert text_of(events) == "abc"
    assert events[-1]["data"] == {"status": "done", "error": None}


# The page of the tutorials, with the official client for browsers


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.get_by_role("button").click()


@browsers
@ways
def test_the_tutorials_page_shows_an_answer_as_it_is_said(
    page: Page, pages: Server, provider: Provider, options: str, transport: str
) -> None:
    provider.script = Script(["Rain ", "falls", "."], gated=True)
    page.goto(f"{pages.url}/socketio?options={quote(options)}")
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator("#transport")).to_have_text(transport)
    ask(page, "Where does rain come from?")
    for words in ("Rain ", "Rain falls", "Rain falls."):
        provider.allow()
        expect(page.locator("#answer")).to_have_text(words)
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#full")).to_have_text("Rain falls.")
    run = page.locator("#run").inner_text()
    assert text_of(log_of(pages, run)) == "Rain falls."
    # A second one on the same connection follows the first.
    provider.script = Script(["Yes"])
    ask(page, "Really?")
    expect(page.locator("#full")).to_have_text("Yes")
    said = [message["content"] for message in provider.calls[-1].json["messages"]]
    assert said == ["Where does rain come from?", "Rain falls.", "Really?"]
    assert page.locator("#connects").inner_text() == "1"


@browsers
@ways
def test_the_page_comes_back_by_itself_and_the_model_is_asked_once(
    page: Page, pages: Server, provider: Provider, options: str, transport: str
) -> None:
    words = [f"word{n} " for n in range(28)]
    provider.script = Script(words, gated=True)
    with Proxy(int(pages.url.rpartition(":")[2])) as proxy:
        page.goto(f"{proxy.url}/socketio?options={quote(options)}")
        expect(page.locator("#transport")).to_have_text(transport)
        ask(page, "Where does rain come from?")
        for cut in range(1, 3):
            provider.allow(10)
            expect(page.locator("#answer")).to_contain_text(f"word{cut * 10 - 1} ")
            assert proxy.cut() > 0
            # What is said meanwhile is not lost.
            provider.allow(2)
            expect(page.locator("#answer")).to_contain_text(f"word{cut * 12 - 1} ")
        provider.allow(4)
        expect(page.locator("#state")).to_have_text("done")
        assert int(page.locator("#connects").inner_text()) > 1
        assert page.locator("#answer").text_content() == "".join(words)
        assert page.locator("#full").text_content() == "".join(words)
    assert len(provider.calls) == 1


@browsers
def test_a_failed_answer_says_so_on_the_page(page: Page, pages: Server, provider: Provider) -> None:
    provider.script = Script(["One "], fault="rst", after=1)
    page.goto(f"{pages.url}/socketio")
    expect(page.locator("#state")).to_have_text("open")
    ask(page, "Fail")
    expect(page.locator("#state")).to_have_text("The model cannot be reached.")
    expect(page.locator("#answer")).to_have_text("One ")


# Workers that go


class Switch(Proxy):
    """A way to one server, and then to another."""

    def __init__(self, server: Server) -> None:
        super().__init__(port_of(server))

    def to(self, server: Server) -> None:
        """Whoever comes from now on is sent there."""
        self._target = ("127.0.0.1", port_of(server))


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize(("opened", "whose"), [(Wire, "one"), (Poll, "two")])
def test_the_worker_is_killed_and_another_goes_on_byte_for_byte(
    provider: Provider, tmp_path: Path, opened: Opened, whose: str
) -> None:
    """The run's own worker (`one`), or that of the connection alone (`two`)."""
    provider.script = Script([f"word{n} " for n in range(40)], gated=True)
    with two_of(provider, tmp_path) as (one, two):
        asked = {"chain": "chat", "input": "kill"}
        url = (one if whose == "one" else two).url
        run = request("POST", f"{url}/runs", json=asked).json()["run"]
        with opened(one.url) as client:
            client.connect()
            client.emit("stream_resume", {"run": run, "after": 0})
            provider.allow(10)
            seen = [client.event() for _ in range(10)]
            os.kill(one.workers[-1], signal.SIGKILL)
            assert client.end() == 1006
        got = client.packets
        assert places(seen) == list(range(1, 11))
        with opened(two.url) as client:
            client.connect()
            client.emit("stream_resume", {"after": f"{run}:{len(got)}"})
            provider.allow(30)
            client.events("error" if whose == "one" else "end")
            got += client.packets
        with opened(two.url) as client:
            client.connect()
            client.emit("stream_resume", {"after": f"{run}:0"})
            whole = client.events("error" if whose == "one" else "end")
            assert client.packets == got
        if whose == "one":
            assert whole[-1]["data"]["code"] == "worker_lost"
        else:
            full = "".join(f"word{n} " for n in range(40))
            assert whole[-1]["data"] == {"full_response": full, "status": "done", "run": run}
    assert len(provider.calls) == 1


def test_a_worker_that_leaves_sends_its_clients_away_and_they_go_on_elsewhere(
    provider: Provider, tmp_path: Path
) -> None:
    words = [f"word{n} " for n in range(20)]
    provider.script = Script(words, gated=True)
    with ExitStack() as stack:
        stays, leaves = stack.enter_context(two_of(provider, tmp_path))
        ways = [stack.enter_context(Switch(leaves)) for _ in TRANSPORTS]
        clients = [
            stack.enter_context(Client(way.url, *names, reconnection=True))
            for way, names in zip(ways, TRANSPORTS, strict=True)
        ]
        idle = [stack.enter_context(opened(leaves.url)) for opened in (Wire, Poll) * 3]
        for one in idle:
            one.connect()
        run = clients[0].ask("deploy")
        for client in clients[1:]:
            assert client.call("stream_resume", {"run": run, "after": 0}) == {"run": run}
        provider.allow(5)
        for client in clients:
            client.events(run, least=7)
        for way in ways:
            way.to(stays)
        began = time.monotonic()
        leaves.process.send_signal(signal.SIGTERM)
        with ThreadPoolExecutor(len(idle)) as pool:
            ends = [end.result() for end in [pool.submit(one.end) for one in idle]]
        assert ends == [1000, 1006] * 3  # a WebSocket is closed; who polls is told 400
        for client in clients:
            client.wait(lambda client=client: client.connects == 2)  # type: ignore[misc]
        assert time.monotonic() - began < 6
        provider.allow(15)
        whole = log_of(stays, run)
        for client in clients:
            assert client.events(run) == as_told(whole)
        assert text_of(whole) == "".join(words)
        assert leaves.stop() == 0
    assert len(provider.calls) == 1


# Many machines


def test_with_valkey_an_apps_own_events_reach_the_clients_of_all_workers(
    provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey())
        one, two = stack.enter_context(two_of(provider, tmp_path, store=valkey.url))
        here = stack.enter_context(Client(one.url, "websocket"))
        there = stack.enter_context(Client(two.url, "polling"))

        def reaches() -> bool:
            number = str(len(here.told("news")))
            assert request("POST", f"{one.url}/emit/news?text={number}").status == 200
            here.wait(lambda: {"text": number} in here.told("news"))
            return bool(there.told("news"))

        wait_for(reaches)
        for text in ("one", "two"):
            assert request("POST", f"{two.url}/emit/other?text={text}").status == 200
            for client in (here, there):
                client.wait(lambda c=client, t=text: {"text": t} in c.told("other"))  # type: ignore[misc]
        # Each comes once.
        assert sorted(said["text"] for said in here.told("other")) == ["one", "two"]
        assert sorted(said["text"] for said in there.told("other")) == ["one", "two"]
        # A run of one is read on at the other.
        run = here.ask("What?")
        provider.allow()
        here.events(run, least=3)
        assert there.call("stream_resume", {"run": run, "after": 2}) == {"run": run}
        provider.allow(2)
        assert there.events(run, after=2) == here.events(run)[2:]
        assert there.events(run, after=2)[-1]["data"]["full_response"] == "abc"
    assert len(provider.calls) == 1


# Who may


@pytest.fixture(scope="module")
def _closed(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[people.Site]:
    with users(
        _provider,
        tmp_path_factory.mktemp("closed"),
        **people.settings("jwt"),
        origins=LISTED,
        recheck=1,
        write_timeout=1.5,
        max_streams=3,
        max_streams_per_address=6,
        start_limit="5/hour",
    ) as server:
        yield people.Site(server, "jwt")


@pytest.fixture
def closed(_closed: people.Site, provider: Provider) -> people.Site:
    """A service whose people have tokens, without anybody; `open` is for anyone."""
    wait_for(lambda: open_streams(_closed) == 0)
    return _closed


def open_streams(site: people.Site | Server) -> int:
    count: int = request("GET", f"{site.url}/health/ready").json()["open_streams"]
    return count


def status_of(url: str, opened: Opened, headers: Sent = NOBODY) -> int:
    """The status with which a session is opened, or not."""
    if opened is Poll:
        try:
            Poll(url, headers=headers).put(CLOSED)
        except Turned as turned:
            return turned.status
        return 200
    answer = request(
        "GET", f"{url}/socket.io/?EIO=4&transport=websocket", headers=UPGRADE | dict(headers)
    )
    return 200 if answer.status == 101 else answer.status


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}
#: A client's last word.
CLOSED = "1"


@either
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (OWN, 200),
        (LISTED, 200),
        ("http://127.0.0.1:1", 403),  # another port
        ("https://evil.example", 403),
        ("null", 403),
        ("https://example.org.evil.example", 403),
        ("http://example.org", 403),
    ],
)
def test_origins_at_the_handshake(
    closed: people.Site, provider: Provider, opened: Opened, origin: str | None, status: int
) -> None:
    said = {"Origin": closed.url if origin == OWN else origin} if origin else {}
    assert status_of(closed.url, opened, said) == status
    # Who carries a token is no page that somebody else has sent.
    token_too = said | bearer(token(sub=f"origin{origin}"))
    assert status_of(closed.url, opened, token_too) == 200
    assert provider.calls == []


def test_a_page_of_another_site_opens_no_session_with_a_get(closed: people.Site) -> None:
    for said in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert status_of(closed.url, Poll, said) == 403
    own = {"Sec-Fetch-Site": "same-origin"}
    assert status_of(closed.url, Poll, own) == 200
    listed = {"Sec-Fetch-Site": "cross-site", "Origin": LISTED}
    with Poll(closed.url, headers=listed) as client:
        assert client.headers["Access-Control-Allow-Origin"] == LISTED
        client.put(CLOSED)


def test_there_is_no_jsonp(closed: people.Site) -> None:
    answer = request("GET", f"{closed.url}/socket.io/?EIO=4&transport=polling&j=0")
    people.refused(answer, 400, "j")
    with Poll(closed.url) as client:
        people.refused(client.post("d=3"), 400, "body")
        people.refused(client.get(query="&j=1"), 400, "j")
        client.put(CLOSED)


@either
def test_a_token_in_the_headers_or_in_what_a_client_says_of_itself(
    closed: people.Site, provider: Provider, opened: Opened
) -> None:
    who = token(sub="alice0")
    with opened(closed.url, headers=bearer(who)) as client, opened(closed.url) as other:
        client.connect()
        run = run_of(asked(client, {"chain": "chat", "question": "mine"})[0])
        other.connect({"token": who})
        other.emit("stream_resume", {"run": run, "after": 0})
        assert other.events()[-1]["data"]["full_response"] == "Hello world"
        for one in (client, other):
            one.put(CLOSED)
    assert len(provider.calls) == 1


def asked(client: Any, message: Any) -> list[Told]:
    """All that a question is answered with."""
    client.emit("stream_question", message)
    events: list[Told] = client.events()
    return events


@either
@pytest.mark.parametrize(
    ("auth", "status", "field"),
    [
        ({"token": "nonsense"}, 401, "Authorization"),
        ({"token": "\ud800"}, 401, "Authorization"),
        ({"token": "a\r\nCookie: b"}, 401, "Authorization"),
        ({"token": 7}, 400, "token"),
        ({"token": None}, 400, "token"),
        ({"ticket": "nonsense"}, 401, "ticket"),
        ({"ticket": "\ud800&x=1"}, 401, "ticket"),
        ({"ticket": ["x"]}, 400, "ticket"),
        ([1], 400, "auth"),
        ("text", 400, "auth"),
    ],
)
def test_what_is_said_in_vain_is_told_and_may_be_said_again(
    closed: people.Site, opened: Opened, auth: Any, status: int, field: str
) -> None:
    with opened(closed.url) as client:
        with pytest.raises(ConnectError) as refused:
            client.connect(auth)
        assert refused.value.data["data"] == {"status": status, "field": field}
        assert refused.value.message
        client.emit("stream_question", {"chain": "open", "question": "x"})  # not connected
        client.connect({"token": token(sub="again")})
        client.emit("stream_cancel", {"run": NOWHERE})
        assert client.event()["data"]["status"] == 404
        client.put(CLOSED)


def test_without_a_token_nobody_is_let_in_where_no_chain_is_public(
    provider: Provider, tmp_path: Path
) -> None:
    with wires(provider, tmp_path, **people.settings("jwt")) as server:
        for auth in (None, {"token": token(exp=int(time.time()) - 10)}):
            for names in TRANSPORTS:
                with pytest.raises(socketio.exceptions.ConnectionError):
                    Client(server.url, *names, auth=auth)
            for opened in (Wire, Poll):
                with opened(server.url) as client, pytest.raises(ConnectError) as refused:
                    client.connect(auth)
                said = "The token has expired." if auth else "Sign in to ask here."
                assert refused.value.message == said
        assert status_of(server.url, Wire, bearer("x")) == 401
        for names in TRANSPORTS:
            with Client(server.url, *names, auth={"token": token()}) as client:
                assert client.events(client.ask("What?"))[-1]["type"] == "end"
        wait_for(lambda: left(server)["seats"] == 0)
    assert len(provider.calls) == len(TRANSPORTS)


@either
def test_anyone_asks_public_chains_alone(
    closed: people.Site, provider: Provider, opened: Opened
) -> None:
    with opened(closed.url) as client:
        client.connect()
        for message in ("first", {"chain": "chat", "question": "x"}):
            ack = client.emit("stream_question", message)
            assert client.event()["data"]["status"] == 401
            assert client.acknowledged(ack)["status"] == 401
        for chain, status, field in (("nothing", 404, "chain"), (7, 400, "chain")):
            client.emit("stream_question", {"chain": chain, "question": "x"})
            error = client.event()["data"]
            assert (error["status"], error["field"]) == (status, field)
        assert provider.calls == []
        assert asked(client, {"chain": "open", "question": "x"})[-1]["type"] == "end"
        client.put(CLOSED)


def test_pages_of_any_site_ask_public_chains_alone(provider: Provider) -> None:
    env = environment(origins="*", OPENAI_BASE_URL=provider.url)
    foreign = {"Origin": "https://evil.example"}
    with Server(gunicorn(app="tests.public:app"), env) as server:
        for opened in (Wire, Poll):
            with opened(server.url, headers=foreign) as client:
                client.connect()
                client.emit("stream_question", {"chain": "chat", "question": "x"})
                assert client.event()["data"]["status"] == 403
                assert asked(client, {"chain": "open", "question": "x"})[-1]["type"] == "end"
    assert len(provider.calls) == 2


def test_anothers_run_is_none(closed: people.Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    hers, his = (Wire(closed.url, headers=bearer(token(sub=name))) for name in ("alice1", "bob1"))
    with hers, his, Poll(closed.url) as anyone:
        for one in (hers, his, anyone):
            one.connect()
        hers.emit("stream_question", {"chain": "chat", "question": "mine"})
        run = run_of(hers.events("chunk")[0])
        for other in (his, anyone):
            answers = []
            for id in (run, NOWHERE):
                for name, message in (
                    ("stream_resume", {"run": id, "after": 0}),
                    ("stream_resume", f"{id}:1"),
                    ("stream_cancel", {"run": id}),
                    ("stream_question", {"chain": "open", "question": "x", "parent": id}),
                ):
                    ack = other.emit(name, message)
                    event = other.event()
                    assert event["type"] == "error"
                    assert other.acknowledged(ack) == event["data"]
                    answers.append(json.dumps(event).replace(id, "id"))
            assert answers[:4] == answers[4:]
            assert '"status": 404' in answers[0]
        his.emit("stream_question", {"chain": "chat", "question": "mine", "run": run})
        assert his.event()["data"]["status"] == 404
        provider.release()
        assert hers.events()[-1]["data"]["status"] == "done"
        anyone.put(CLOSED)
    assert len(provider.calls) == 1


@either
@pytest.mark.parametrize("where", ["query", "auth"])
def test_a_ticket_is_good_for_its_run_alone(
    closed: people.Site, provider: Provider, opened: Opened, where: str
) -> None:
    who = bearer(token(sub=f"ticket{where}{opened.__name__}"))
    made = request("POST", f"{closed.url}/tickets", json={"chain": "other"}, headers=who).json()
    query = f"&ticket={quote(made['ticket'])}" if where == "query" else ""
    auth = None if query else {"ticket": made["ticket"]}
    # Without a ticket such a page would not be let in.
    foreign = {"Origin": "https://evil.example"} if query else {}
    with opened(closed.url, query=query, headers=foreign) as client:
        client.connect(auth)
        events = asked(client, "With a ticket")
        assert run_of(events[0]) == made["run"]
        for name, message, status in (
            ("stream_question", "Another", 409),
            ("stream_question", {"question": "x", "run": NOWHERE}, 404),
            ("stream_question", {"question": "With a ticket", "chain": "chat"}, 403),
            ("stream_resume", {"run": NOWHERE, "after": 0}, 404),
            ("stream_cancel", {"run": NOWHERE}, 404),
        ):
            client.emit(name, message)
            assert client.event()["data"]["status"] == status, (name, message)
        # Again: the same run.
        assert asked(client, "With a ticket") == events
        client.emit("stream_resume", {"run": made["run"], "after": 2})
        assert client.events() == events[2:]
        client.put(CLOSED)
    assert len(provider.calls) == 1


@either
def test_places_are_limited_and_come_back(closed: people.Site, opened: Opened) -> None:
    who = bearer(token(sub=f"many{opened.__name__}"))
    with ExitStack() as stack:
        clients = [stack.enter_context(opened(closed.url, headers=who)) for _ in range(3)]
        assert status_of(closed.url, opened, who) == 429
        anyones = [stack.enter_context(opened(closed.url)) for _ in range(3)]
        assert status_of(closed.url, opened) == 429
        # To say who one is takes no second place.
        anyones[0].connect({"token": token(sub=f"else{opened.__name__}")})
        assert open_streams(closed) == 6
        with pytest.raises(ConnectError) as full:
            anyones[1].connect({"token": token(sub=f"many{opened.__name__}")})
        assert full.value.data["data"]["status"] == 429
        assert open_streams(closed) == 6
        for client in clients:
            client.connect()
        for n in range(5):
            assert asked(clients[n % 3], {"chain": "chat", "question": "x"})[-1]["type"] == "end"
        ack = clients[0].emit("stream_question", {"chain": "chat", "question": "too many"})
        error = clients[0].event()["data"]
        assert error["status"] == 429
        assert error["retry_after"] >= 1
        assert clients[0].acknowledged(ack) == error
        # A place that is given back is somebody else's.
        clients[0].put(CLOSED)
        wait_for(lambda: status_of(closed.url, opened, who) == 200)
    # Who never connects, nor answers a ping, is let go.
    wait_for(lambda: open_streams(closed) == 0)
    waiting = [opened(closed.url) for _ in range(6)]
    assert status_of(closed.url, opened) == 429
    wait_for(lambda: open_streams(closed) == 0)
    for one in waiting:
        one.close()


@either
def test_a_token_that_runs_out_ends_it(
    closed: people.Site, provider: Provider, opened: Opened
) -> None:
    provider.script = Script(["a", "b"], stall=1)
    brief = token(sub="brief", exp=int(time.time()) + 3)
    with opened(closed.url) as client:
        client.connect({"token": brief})
        client.emit("stream_question", {"chain": "chat", "question": "until it runs out"})
        events = client.events("unauthorized")
        assert (events[-1]["id"], events[-1]["data"]["code"]) == (None, "unauthorized")
        with pytest.raises(Ended):
            client.hear()
        # Who does not go is let go, and is not told it again and again.
        began = time.monotonic()
        assert client.end() in (1000, 1006)
        assert time.monotonic() - began < 5
    with opened(closed.url) as client:
        client.connect({"token": token(sub="brief")})
        client.emit("stream_resume", {"after": events[-2]["id"]})
        provider.release()
        assert text_of(events + client.events()) == "ab"
        client.put(CLOSED)
    assert len(provider.calls) == 1


@transports
def test_who_is_revoked_starts_nothing_more(
    closed: people.Site, provider: Provider, transports: list[str]
) -> None:
    name = f"revoked{'-'.join(transports)}"
    with Client(closed.url, *transports, auth={"token": token(sub=name)}) as client:
        client.events(client.ask({"chain": "chat", "question": "one"}))
        closed.revoke(f"user:{name}")
        client.official.emit("stream_question", {"chain": "chat", "question": "two"})
        client.wait(lambda: bool(client.told("stream_unauthorized")))
        client.wait(lambda: bool(client.disconnects))
    assert [call.question for call in provider.calls] == ["one"]


# What is none


CANARY = "canary-77d1"
#: What is no payload of a client's packets; it is refused, and the session stays.
NO_PAYLOAD: list[bytes] = [
    b"",
    b"x" + CANARY.encode(),
    b"9",
    b"2",
    b"2probe",
    b"0{}",
    b"5",
    b"6",
    b"\x1e",
    b"3\x1e",
    b"bA",
    b"4" + b"[" * 50_000,
    b"\xff\xfe",
    b"4\xed\xa0\x80",
    b"d=42" + CANARY.encode(),
    b"3\x1e" * 20_000 + b"3",
]
#: Packets that carry no Socket.IO; who sends them is sent away.
NO_EVENT = [
    "4",
    "4[",
    f"4{CANARY}",
    "42",
    "42[",
    "42[]",
    "42{}",
    '42"x"',
    "42[1]",
    "42[null]",
    '42[{"a":1}]',
    "42" + "[" * 50_000,
    "4" + "9" * 5000 + "[]",
    "4999999999999-[]",
    "44",
    "47",
    "4\x00",
    "b!!!!",
    "bAAAA",
    '4599-["stream_question",{"_placeholder":true,"num":0}]\x1ebAAAA',
    '451-["stream_question",{"_placeholder":true,"num":7}]\x1ebAAAA',
    f'42["connect",{{"REMOTE_ADDR":"192.0.2.1","{CANARY}":1}},{{"token":"x"}}]',
    '42["disconnect","x"]',
]
#: And those that mean nothing here.
MEANINGLESS = ["43", "431[]", '42["unknown",{"a":1}]', "40/elsewhere,", '42/elsewhere,["x"]', "40"]


@pytest.fixture
def quiet(site: Server) -> Iterator[Server]:
    """The service, whose log tells nothing of what it was sent, and of no fault of its own."""
    start = len(site.log)
    yield site
    assert CANARY not in site.log
    assert "Traceback" not in site.log[start:]


@pytest.mark.parametrize("body", NO_PAYLOAD, ids=lambda body: str(body[:12]))
def test_what_is_no_payload_is_refused_and_the_session_stays(quiet: Server, body: bytes) -> None:
    with Poll(quiet.url) as client:
        client.connect()
        people.refused(client.post(body), 400, "body")
        assert asked(client, "Still there?")[-1]["type"] == "end"


@pytest.mark.parametrize("packet", ["", "x", "\x1e", "bA", "4" + "[" * 50_000])
def test_what_is_no_packet_closes_a_websocket(quiet: Server, packet: str) -> None:
    with Wire(quiet.url) as client:
        client.connect()
        client.put(packet)
        assert client.end() == 1002
    wait_for(lambda: left(quiet)["clients"] == 0)


@either
@pytest.mark.parametrize("packet", NO_EVENT, ids=lambda packet: packet[:12])
def test_who_says_what_is_no_event_is_sent_away(
    quiet: Server, provider: Provider, opened: Opened, packet: str
) -> None:
    with opened(quiet.url) as client:
        client.connect()
        if opened is Wire:
            for one in packet.split("\x1e"):
                client.put(one)
        else:
            # What comes after it is not heard, nor remembered.
            client.put("\x1e".join([packet, "40", '42["stream_question","x"]']))
        assert client.end(5) == (1000 if opened is Wire else 1006)
    wait_for(lambda: left(quiet)["clients"] == 0)
    found = left(quiet)
    assert (found["rooms"], found["environments"], found["seats"]) == (0, 0, 0)
    assert provider.calls == []


@either
def test_what_means_nothing_here_is_passed_over(quiet: Server, opened: Opened) -> None:
    with opened(quiet.url) as client:
        client.connect()
        for packet in MEANINGLESS:
            client.put(packet)
        if opened is Wire:
            for packet in ("9", "2", "0", "6"):
                client.put(packet)
        client.emit("stream_question", "Still there?")
        told = [client.packet() for _ in range(2)]
        assert [one.partition(",")[0] for one in told] == ["4/elsewhere", '4"Unable to connect"']
        assert client.events()[-1]["type"] == "end"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(TEXT, b"\xff\xfe")], 1007),
        ([(TEXT, b"4" + b"x" * BODY)], 1009),
        ([(TEXT, b"4" + "ü".encode() * (BODY // 2))], 1009),
        ([(BINARY, b"x" * (BODY + 1))], 1009),
        ([(BINARY, b"x")], 1000),
        ([(TEXT, b'453-["x",{}]')] + [(BINARY, b"x" * (BODY // 2))] * 3, 1000),
        ([(TEXT, b'4599999-["x",{}]'), (BINARY, b"x")], 1000),
    ],
)
def test_frames_are_bounded(quiet: Server, frames: list[tuple[int, bytes]], code: int) -> None:
    with Wire(quiet.url) as client:
        client.connect()
        for opcode, data in frames:
            client.socket.send_frame(opcode, data)
        assert client.end(5) == code
    wait_for(lambda: left(quiet)["clients"] == 0)


def by_hand(client: Poll, head: str, body: bytes, timeout: float = 10) -> bytes:
    """What a request of a session's is answered that no client of HTTP would make."""
    parts = urlsplit(client.url)
    with socket.create_connection((parts.hostname, parts.port), timeout) as raw:
        start = f"POST {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        raw.sendall(f"{start}{head}\r\n\r\n".encode() + body)
        told = b""
        while data := raw.recv(65536):
            told += data
    return told


def test_bodies_are_bounded_and_whole(quiet: Server, provider: Provider) -> None:
    said = b'42["stream_question","' + CANARY.encode() + b'"]'
    with Poll(quiet.url) as client:
        client.connect()
        people.refused(client.post(b"4" + b"x" * BODY), 413, "body")
        chunked = "Transfer-Encoding: chunked"
        big = b"%x\r\n4%b" % (BODY + 2, b"x" * BODY)
        assert b" 413 " in by_hand(client, chunked, big).partition(b"\r\n")[0]
        # In its time, or not at all.
        began = time.monotonic()
        slow = by_hand(client, f"Content-Length: {len(said)}", said[:-1])
        assert b" 408 " in slow.partition(b"\r\n")[0]
        assert 1 < time.monotonic() - began < 4
        half = by_hand(client, chunked, b"%x\r\n" % len(said) + said[:9])
        assert b" 408 " in half.partition(b"\r\n")[0]
        assert provider.calls == []
    with Poll(quiet.url) as client:
        client.connect()
        pieces = b"".join(b"1\r\n%c\r\n" % one for one in said) + b"0\r\n\r\n"
        assert by_hand(client, chunked, pieces).endswith(b"OK")
        assert client.events()[-1]["type"] == "end"
    assert len(provider.calls) == 1


def test_requests_that_open_nothing(quiet: Server) -> None:
    def get(query: str, **headers: str) -> Any:
        url = f"{quiet.url}/socket.io/?{query}"
        return request("GET", url, headers={n.replace("_", "-"): v for n, v in headers.items()})

    upgrade: dict[str, str] = {name.replace("-", "_"): value for name, value in UPGRADE.items()}
    unknown = people.refused(get(f"EIO=4&transport=polling&sid={NOWHERE}"), 400, "sid")
    assert "sticky sessions" in unknown["detail"]
    people.refused(get(f"EIO=4&transport=websocket&sid={NOWHERE}", **upgrade), 400, "sid")
    people.refused(get("EIO=4&transport=polling&sid="), 400, "sid")
    assert request("HEAD", f"{quiet.url}/socket.io/?EIO=4&transport=polling").status == 405
    for body in (b"40", b"nonsense"):
        url = f"{quiet.url}/socket.io/?EIO=4&transport=polling"
        people.refused(request("POST", url, body=body), 400, "sid")
    for query in ("EIO=3&transport=polling", "transport=polling", "EIO=4&transport=smoke"):
        assert get(query).status == 400
    assert get("EIO=4&transport=websocket").status == 400
    for name, value in (
        ("Sec_WebSocket_Key", "short"),
        ("Sec_WebSocket_Version", "8"),
        ("Connection", "close"),
    ):
        answer = get("EIO=4&transport=websocket", **upgrade | {name: value})
        people.refused(answer, 400, name.replace("_", "-"))
    found = left(quiet)
    assert (found["seats"], found["clients"], found["environments"]) == (0, 0, 0), found


# Sent twice


def test_a_poll_that_comes_twice_ends_the_session(quiet: Server, provider: Provider) -> None:
    """Browsers and proxies send a GET again whose answer was lost with its connection."""
    with Poll(quiet.url) as client:
        client.connect()
        assert client.get(query="&t=one").status == 200  # a ping
        people.refused(client.get(query="&t=one"), 400, "t")
        people.refused(client.get(query="&t=two"), 400, "sid")
    with Poll(quiet.url) as client, ThreadPoolExecutor(1) as pool:
        client.connect()
        client.put("3")
        first = pool.submit(client.get, query="&t=one")
        wait_for(lambda: left(quiet)["greenlets"] > 0)
        second = client.get(query="&t=two")
        while second.status == 200:  # the first had been answered already
            first = pool.submit(client.get, query="&t=three")
            second = client.get(query="&t=four")
        assert second.status == 400
        first.result()
    assert provider.calls == []


def test_a_post_that_comes_twice_is_heard_once(quiet: Server, provider: Provider) -> None:
    with Poll(quiet.url) as client:
        client.connect()
        for _ in range(3):
            assert client.post('42["stream_question","once"]', query="&t=one").body == b"OK"
        assert client.events()[-1]["type"] == "end"
        assert client.post('42["stream_question","again"]', query="&t=two").body == b"OK"
        assert client.events()[-1]["type"] == "end"
    assert [call.question for call in provider.calls] == ["once", "again"]


# Changing the wire


def test_who_changes_its_wire_in_mid_answer_misses_nothing(
    quiet: Server, provider: Provider
) -> None:
    provider.script = Script([f"word{n} " for n in range(40)], gated=True)
    with Poll(quiet.url) as polling:
        polling.connect()
        polling.emit("stream_question", "change")
        provider.allow(10)
        events = polling.events("chunk")
        with Wire(quiet.url, query=f"&sid={polling.session['sid']}") as wire:
            wire.put("2probe")
            assert wire.take() == "3probe"
            provider.allow(20)
            # Whoever polls is told nothing more; what is said meanwhile waits.
            while (packet := polling.take()) != "6":
                if packet.startswith("42"):
                    name, data = json.loads(packet[2:])
                    events.append({"id": data.pop("id"), "type": name[7:], "data": data})
            wire.put("5")
            provider.allow(10)
            events += wire.events()
            assert polling.get().status == 400
    assert places(events) == list(range(1, len(events) + 1))
    assert text_of(events) == "".join(f"word{n} " for n in range(40))


@pytest.mark.parametrize("said", [None, "x", "2nothing", "4", '42["stream_question","x"]'])
def test_who_does_not_change_it_after_all_goes_on_polling(quiet: Server, said: str | None) -> None:
    with Poll(quiet.url) as polling:
        polling.connect()
        with Wire(quiet.url, query=f"&sid={polling.session['sid']}") as wire:
            if said is not None:
                wire.put(said)
            with ThreadPoolExecutor(1) as pool:
                polled = pool.submit(asked, polling, "Still there?")
                with pytest.raises(Ended):
                    wire.take(WRITE + 3)
                assert polled.result()[-1]["type"] == "end"


# The namespace


@either
def test_who_leaves_and_comes_back_in_one_session(
    quiet: Server, provider: Provider, opened: Opened
) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with opened(quiet.url) as client:
        client.connect()
        client.emit("stream_question", "one")
        provider.allow()
        events = client.events("chunk")
        client.put("41")
        provider.allow(2)
        wait_for(lambda: log_of(quiet, run_of(events[0]))[-1]["type"] == "end")
        client.connect()  # nothing else comes before it
        client.emit("stream_resume", {"after": events[-1]["id"]})
        events += client.events()
        assert text_of(events) == "abc"
        provider.script = Script(["d"])
        second = asked(client, "two")
        assert second[0]["data"]["parent"] == run_of(events[0])
    assert len(provider.calls) == 2


# Those who do not read


def test_it_pings_and_lets_go_of_who_does_not_answer(quiet: Server) -> None:
    with Wire(quiet.url) as silent, Wire(quiet.url) as there, ThreadPoolExecutor(1) as pool:
        absent = Poll(quiet.url)
        silent.pongs = False
        for one in (silent, absent, there):
            one.connect()
        began = time.monotonic()
        ended = pool.submit(silent.end)
        with pytest.raises(TimeoutError):
            there.hear(1.6 * WRITE)
        assert ended.result() == 1000
        assert WRITE - 0.2 <= time.monotonic() - began < 2 * WRITE + HEARTBEAT + 1
        wait_for(lambda: left(quiet)["clients"] == 1)
        people.refused(absent.get(), 400, "sid")


def test_who_answers_pings_and_never_connects_is_let_go(quiet: Server) -> None:
    with Wire(quiet.url) as never, Wire(quiet.url) as no_more, Wire(quiet.url) as there:
        no_more.connect()
        there.connect()
        no_more.put("41")  # it has left the namespace
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(one.end) for one in (never, no_more)]
            with pytest.raises(TimeoutError):
                there.hear(1.6 * WRITE)
            assert [end.result() for end in ends] == [1000, 1000]
        assert WRITE - 0.2 <= time.monotonic() - began < 2 * WRITE + HEARTBEAT + 1
        wait_for(lambda: left(quiet)["clients"] == 1)


def test_who_never_reads_is_let_go_and_resumes(quiet: Server) -> None:
    with Wire(quiet.url, receive_buffer=4096) as slow:
        slow.connect()
        slow.emit("stream_question", {"chain": "much", "question": "2000"})
        run = run_of(slow.event())
        # Nothing is read, so no ping is answered; its run is not held up.
        events = as_told(log_of(quiet, run))
        assert len(events) == 2003
        wait_for(lambda: left(quiet)["clients"] == 0)
        # What was on its way comes, whole, and why it is the last.
        slow.pongs = False
        assert slow.end() == 1013
        seen = [json.loads(one[1:]) for one in slow.packets]
    assert [data["id"] for _, data in seen] == [event["id"] for event in events[: len(seen)]]
    assert 0 < len(seen) < len(events)
    with Wire(quiet.url) as client:
        client.connect()
        client.emit("stream_resume", {"run": run, "after": len(seen)})
        assert client.events() == events[len(seen) :]


def test_who_never_polls_is_let_go_and_resumes(quiet: Server) -> None:
    run = fresh()
    with Poll(quiet.url) as slow:
        slow.connect()
        before = memory(quiet)
        slow.emit("stream_question", {"chain": "much", "question": "2000", "run": run})
        # Its run is not held up.
        events = as_told(log_of(quiet, run))
        wait_for(lambda: left(quiet)["clients"] == 0)
        assert memory(quiet) - before < 50_000_000
        people.refused(slow.get(), 400, "sid")
    with Wire(quiet.url) as client:
        client.connect()
        client.emit("stream_resume", {"run": run, "after": 0})
        assert client.events() == events
    assert len(events) == 2003


def open_runs(server: Server) -> int:
    count: int = request("GET", f"{server.url}/health/ready").json()["live_runs"]
    return count


def test_who_reads_slowly_but_reads_is_kept(quiet: Server) -> None:
    with Wire(quiet.url, receive_buffer=4096) as slow:
        slow.connect()
        slow.emit("stream_question", {"chain": "much", "question": "2000"})
        until = time.monotonic() + 1.6 * WRITE
        events = []
        # The whole is two megabytes: no ping is read before much of it.
        while time.monotonic() < until:
            events += [slow.event() for _ in range(4)]
            time.sleep(0.02)
        assert len(events) < 1000
        while events[-1]["type"] != "end":
            events.append(slow.event())
        assert places(events) == list(range(1, 2004))


def test_a_flood_of_messages_waits_outside(quiet: Server, provider: Provider) -> None:
    provider.script = Script(["a"])
    bad = b'42["stream_question",{"colour":"' + b"x" * 5_000 + b'"}]'
    with Wire(quiet.url, receive_buffer=4096) as flood:
        flood.connect()
        before = memory(quiet)
        frame = flood.socket.frame(TEXT, bad)
        flood.socket.socket.setblocking(False)
        sent = 0
        until = time.monotonic() + 0.75 * WRITE  # then it is let go
        while time.monotonic() < until:
            try:
                sent += flood.socket.socket.send(frame[sent % len(frame) :])
            except BlockingIOError:
                # It does not take it all: what it is told of it is not read.
                with Wire(quiet.url) as client:
                    client.connect()
                    asked(client, "Hello")
        assert memory(quiet) - before < 50_000_000
        assert 0 < sent < 20_000_000
    wait_for(lambda: left(quiet)["clients"] == 0)


def test_a_flood_of_posts_waits_outside(quiet: Server, provider: Provider) -> None:
    provider.script = Script(["a"])
    bad = "\x1e".join(['42["stream_question",{"colour":"red"}]'] * 2000)
    sessions = [Poll(quiet.url) for _ in range(8)]
    for one in sessions:
        one.connect()
    before = memory(quiet)
    with ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(one.post, bad) for one in sessions]
        while not all(post.done() for post in posts):
            with Wire(quiet.url) as client:
                client.connect()
                began = time.monotonic()
                asked(client, "Hello")
                assert time.monotonic() - began < 2
        for post in posts:
            assert post.result().status == 200
    assert memory(quiet) - before < 50_000_000
    wait_for(lambda: left(quiet)["clients"] == 0)


def test_a_flood_of_acknowledgements_comes_in_pieces_that_all_can_read(quiet: Server) -> None:
    with Client(quiet.url, "polling") as client:
        told: list[Any] = []
        for _ in range(100):
            client.official.emit("stream_question", {"colour": "red"}, callback=told.append)
        client.wait(lambda: len(client.told("stream_error")) == 100)
        wait_for(lambda: len(told) == 100)
        assert client.disconnects == []
        assert {answer["field"] for answer in told} == {"colour"}


def test_a_flood_of_sessions_goes_by_itself(quiet: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Poll(quiet.url), range(150)))
    assert left(quiet)["clients"] > 0
    wait_for(lambda: left(quiet)["clients"] == 0)
    found = left(quiet)
    assert (found["seats"], found["rooms"], found["environments"]) == (0, 0, 0)


# Going


def test_everything_is_given_back(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)

    def settle() -> dict[str, int]:
        """What the worker has when nothing more goes away."""
        provider.release()
        wait_for(lambda: left(site)["sessions"] == 0)
        wait_for(lambda: open_runs(site) == 0)
        found = [left(site)]
        while len(found) < 4 or found[-1] != found[-4]:
            found.append(left(site))
            time.sleep(0.2)
            assert len(found) < 60, found
        return found[-1]

    def use() -> None:
        with ExitStack() as stack:
            for n in range(16):
                client: Any = stack.enter_context((Wire, Poll)[n % 2](site.url))
                client.connect({"token": "x"} if n % 8 < 2 else None)
                client.emit("stream_question", "open")
                client.events("chunk")
                client.emit("stream_question", {"question": "beside", "run": fresh(f"{n:x}")})
                client.events("chunk")
                match n // 2 % 4:
                    case 0:
                        client.put("41")
                    case 1:
                        client.put(CLOSED)
                    case 2:
                        client.put("4nonsense")
            Poll(site.url)  # never connects
            with Client(site.url) as official:
                official.events(official.ask({"chain": "count", "question": "9"}))

    use()
    before = settle()
    use()
    after = settle()
    assert (after["seats"], after["rooms"], after["environments"]) == (0, 0, 0)
    assert after["greenlets"] <= before["greenlets"]
    assert after["files"] <= before["files"]


def test_a_question_before_an_end_is_asked_all_the_same(site: Server, provider: Provider) -> None:
    with Poll(site.url) as client:
        client.connect()
        client.put(f'42["stream_question","Bye"]\x1e{CLOSED}')
    assert provider.wait_calls(1)
    assert provider.calls[0].question == "Bye"


# Other servers


@contextmanager
def development(provider: Provider, **settings: object) -> Iterator[Server]:
    """`flask run`: threads, and no greenlets."""
    command = [sys.executable, "-m", "flask", "--app", "tests.wires:app", "run", "--port", "0"]
    given = {"OPENAI_BASE_URL": provider.url, "heartbeat": HEARTBEAT, "write_timeout": WRITE}
    with Server(command, environment(**given | {"max_body": BODY} | settings)) as server:
        yield server
        assert "Traceback" not in server.log


def test_the_development_server_has_it_as_well(provider: Provider) -> None:
    provider.script = Script(["a", "b"])
    with development(provider) as server:
        for names in TRANSPORTS:
            with Client(server.url, *names) as client:
                assert client.transport == names[-1]
                events = client.events(client.ask("Hello"))
                assert events[-1]["data"]["full_response"] == "ab"
        with Wire(server.url) as client:
            client.put("4" + "x" * BODY)
            assert client.end() == 1009
        with Wire(server.url) as client:
            client.put("nonsense")
            assert client.end() == 1002
        with Wire(server.url) as quiet:
            quiet.pongs = False
            assert quiet.end() == 1000
        wait_for(lambda: left(server)["seats"] == 0)
    assert len(provider.calls) == len(TRANSPORTS)


@pytest.mark.parametrize("kind", ["gunicorn", "flask run"])
def test_an_app_that_has_its_own_server_keeps_it(
    provider: Provider, tmp_path: Path, kind: str
) -> None:
    made = (
        wires(provider, tmp_path, WIRES_OWN="1")
        if kind == "gunicorn"
        else development(provider, WIRES_OWN="1")
    )
    # On threads theirs answers no WebSocket's close, and the client waits for that.
    ways = TRANSPORTS if kind == "gunicorn" else TRANSPORTS[:2]
    with made as server:
        for names in ways:
            with Client(server.url, *names) as client:
                assert client.call("shout", "hello") == "heard"
                client.wait(lambda: client.told("shouted") == ["HELLO"])
                run = client.ask("What?")
                events = client.events(run)
                assert events == as_told(log_of(server, run))
                # Its handlers run side by side: still it is one client, in one place.
                runs = [fresh(name) for name in "abcd"]
                for run in runs:
                    client.official.emit("stream_question", {"question": "x", "run": run})
                for run in runs:
                    assert client.events(run)[-1]["data"]["full_response"] == "Hello world"
                assert left(server)["seats"] == 1
            wait_for(lambda: left(server)["seats"] == 0)
        with Client(server.url, "polling") as client:
            # All at once, before it is known.
            for run in runs:
                client.official.emit("stream_resume", {"run": run, "after": 0})
            for run in runs:
                assert client.events(run)[-1]["data"]["full_response"] == "Hello world"
            assert left(server)["seats"] == 1
        wait_for(lambda: left(server)["seats"] == 0)
    assert len(provider.calls) == 5 * len(ways)
