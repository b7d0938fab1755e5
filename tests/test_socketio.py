"""Socket.IO on the real service: by the official clients, and packet by packet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from flask_stream.errors import BadRequest
from flask_stream.events import Event, encode
from flask_stream.transports.socketio_packets import (
    answer,
    notice,
    packet,
    packets,
    parse_arguments,
)

from . import sio_sites, sites
from .chromium import CHROMIUM
from .provider import Provider, Script
from .proxy import Proxy
from .server import Server, environment
from .sio import Client, StreamEvent, Wire
from .sio_sites import TRANSPORTS, Opened, as_stream_events, either, fresh, transports
from .socketio_js import NPM
from .test_websocket import (
    BODY,
    HEARTBEAT,
    WRITE,
    left,
    log_of,
    run_of,
    wait_for,
    wires,
)
from .ws import places, text_of

folder, official = sio_sites.folder, sio_sites.official
_site, site = sio_sites._site, sio_sites.site
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
browser, visitor, page = sites.browser, sites.visitor, sites.page


@pytest.fixture
def pages(site: Server, official: Path) -> Server:
    """The service, and the client that its page asks it for."""
    assert official.is_dir()
    return site


# Packets


def test_events_are_packets() -> None:
    run = "r" * 16
    events = [
        Event(1, "start", '{"run":"x"}'),
        Event(2, "message_start", '{"id":"m1","role":"assistant"}'),
        Event(3, "chunk", '{"content":"\\ud800","message":"m1","kind":"text"}'),
        Event(4, "tool_call", '{"id":"c1","name":"f","args":{"id":1}}'),
        Event(5, "tool_result", '{"id":"c1","name":"f","content":"x"}'),
        Event(6, "interrupt", '{"id":"i1","value":{}}'),
        Event(7, "custom", "{}"),
        Event(8, "end", '{"status":"done","finish_reason":"stop","error":null}'),
        Event(0, "end", encode({"status": "error", "error": {
            "code": "store_error", "message": "No.", "retryable": True}})),
    ]  # fmt: skip
    made = packets(run, events, lambda: "all of it")
    assert made[0] == '2["stream_start",{"id":"rrrrrrrrrrrrrrrr:1","run":"x"}]'
    assert made[6] == '2["stream_custom",{"id":"rrrrrrrrrrrrrrrr:7"}]'
    read = [json.loads(one.removeprefix("2")) for one in made]
    assert [name.removeprefix("stream_") for name, _ in read] == [
        "start", "message_start", "chunk", "tool_call", "tool_result", "interrupt", "custom", "end",
        "error",
    ]  # fmt: skip
    assert [data["id"] for _, data in read] == [*(f"{run}:{n}" for n in range(1, 9)), None]
    assert read[1][1]["message_id"] == "m1"
    assert (read[3][1]["tool_call_id"], read[3][1]["args"]) == ("c1", {"id": 1})
    assert read[4][1]["tool_call_id"] == "c1"
    assert read[5][1] == {"id": f"{run}:6", "interrupt_id": "i1", "value": {}}
    assert read[7][1] == {
        "id": f"{run}:8", "full_response": "all of it", "status": "done",
        "finish_reason": "stop", "run": run,
    }  # fmt: skip
    assert read[8][1] == {
        "id": None, "error": "No.", "code": "store_error", "retryable": True,
        "finish_reason": None, "run": run,
    }  # fmt: skip
    assert packet("error", notice({"error": "x"})) == '2["stream_error",{"id": null, "error": "x"}]'


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
    assert parse_arguments([], "question") == {}
    assert parse_arguments(["x"], "question") == {"question": "x"}
    assert parse_arguments([{"a": 1}], "question") == {"a": 1}
    none: list[list[Any]] = [[1], [None], [["x"]], ["x", "y"], [b"x"], [{}, {}]]
    for args in none:
        with pytest.raises(BadRequest) as refused:
            parse_arguments(args, "after")
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
        assert [event["type"] for event in events[:2]] == ["start", "message_start"]
        assert events[0]["data"]["input"] == {"question": "What?"}
        assert places(events) == list(range(1, len(events) + 1))
        assert events == as_stream_events(log_of(site, run))
        assert events[-1]["data"] == {
            "full_response": "a b\n😀", "status": "done", "finish_reason": "stop", "run": run,
        }  # fmt: skip
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
        assert events == as_stream_events(log_of(site, run))
        assert events[-1]["type"] == "error"
        assert events[-1]["data"] == {
            "error": "Something went wrong while answering.",
            "code": "chain_error",
            "retryable": True,
            "finish_reason": None,
            "run": run,
        }
        assert text_of(events) == "One "
        assert client.data_of("stream_end") == []


def test_what_events_call_their_id_is_named_apart(site: Server) -> None:
    with Client(site.url, "websocket") as client:
        run = client.ask({"chain": "all", "question": "x"})
        events = client.events(run)
        assert events == as_stream_events(log_of(site, run))
        data = {event["type"]: event["data"] for event in events}
        assert data["tool_call"]["tool_call_id"] == data["tool_result"]["tool_call_id"] == "call-1"
        assert data["tool_call"]["args"] == {"id": "inner"}
        assert data["custom"] == {"name": "weather", "value": {"id": "rain"}}
        assert data["message_start"]["message_id"] == data["chunk"]["message"]


@either
def test_runs_of_their_own_stand_side_by_side(
    site: Server, provider: Provider, opened: Opened
) -> None:
    provider.scripts = {
        name: Script([f"{name}{n} " for n in range(20)], stall=1) for name in ("a", "b", "c")
    }
    runs = {name: fresh(name) for name in ("a", "b", "c")}
    events: dict[str, list[StreamEvent]] = {run: [] for run in runs.values()}
    with opened(site.url) as client:
        client.connect()
        acks = [client.emit("stream_question", {"question": n, "run": r}) for n, r in runs.items()]
        order: list[str] = []
        begun = 0
        while sum(event["type"] == "end" for said in events.values() for event in said) < 3:
            event = client.event()
            order.append(run_of(event))
            events[order[-1]].append(event)
            # All three have begun before any goes on.
            if event["type"] == "chunk" and event["data"]["content"] in ("a0 ", "b0 ", "c0 "):
                begun += 1
                if begun == 3:
                    provider.release()
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

    def status(event: StreamEvent) -> tuple[str, Any]:
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
    events: list[StreamEvent] = []
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
    assert events == as_stream_events(log_of(site, run))
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
    assert events[-1]["data"] == {"status": "done", "finish_reason": "stop", "error": None}


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
                client.wait(lambda: client.data_of("shouted") == ["HELLO"])
                run = client.ask("What?")
                events = client.events(run)
                assert events == as_stream_events(log_of(server, run))
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
