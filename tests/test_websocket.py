"""WebSocket on the real service: by the page of the tutorials, and frame by frame."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from socket import SHUT_RDWR, socketpair
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from playwright.sync_api import Page, expect

from flask_stream.engine.log_reader import LogReader
from flask_stream.errors import NotFound
from flask_stream.events import Cursor, Event
from flask_stream.stores.base import Run
from flask_stream.transports.base import ConnectionLimits
from flask_stream.transports.websocket_connection import WebSocketConnection
from flask_stream.transports.websocket_frames import END, event_frames, join_frames, text_frame
from flask_stream.transports.websocket_handshake import accept_handshake
from flask_stream.transports.websocket_socket import SlowClient, WebSocket, WebSocketClosed

from . import chromium, people, sites
from .people import NOWHERE, Sent, bearer, sealed, token, users
from .provider import Provider, Script
from .proxy import Proxy
from .server import Server, environment, gunicorn
from .sites import Pages
from .sse import Stream, request
from .ws import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Ended,
    Refused,
    Socket,
    places,
    text_of,
)

HEARTBEAT, WRITE, LEASE, BODY = 0.5, 2.0, 3.0, 100_000

browsers = chromium.needed
browser, visitor, page = sites.browser, sites.visitor, sites.page


@contextmanager
def wires(
    provider: Provider, folder: Path, *arguments: str, **settings: object
) -> Iterator[Server]:
    """The app of `tests.wires`."""
    given: dict[str, object] = {
        "OPENAI_BASE_URL": provider.url,
        "WIRES_STATE": folder / "state.db",
        "heartbeat": HEARTBEAT,
        "write_timeout": WRITE,
        "max_body": BODY,
        "lease": LEASE,
        "store": f"sqlite:///{folder}/runs.db",
    }
    command = gunicorn(*arguments, app="tests.wires:app")
    with Server(command, environment(**given | settings)) as server:
        try:
            yield server
        finally:
            provider.release()


@pytest.fixture(scope="module")
def _site(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with wires(_provider, tmp_path_factory.mktemp("wires")) as server:
        yield server


@pytest.fixture
def site(_site: Server, provider: Provider) -> Server:
    """One worker, whose time limits are short."""
    return _site


def ws(server: Server | str, chain: str = "chat", query: str = "", **options: Any) -> Socket:
    url = server if isinstance(server, str) else server.url
    return Socket(f"{url}/ws/{chain}{query}", **options)


def left(server: Server) -> dict[str, int]:
    found: dict[str, int] = request("GET", f"{server.url}/left").json()
    return found


def at_rest(server: Server) -> dict[str, int]:
    """What the worker has when nothing more goes away."""
    found = [left(server)]
    while len(found) < 4 or found[-1] != found[-4]:
        found.append(left(server))
        time.sleep(0.2)
        assert len(found) < 60, found
    return found[-1]


def wait_for(condition: Callable[[], bool], timeout: float = 15) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def session(name: str) -> Sent:
    """Somebody's cookie."""
    return {"Cookie": f"stream_session={sealed(name * 32, 'session')}"}


def log_of(server: Server, run: str, **options: Any) -> list[dict[str, Any]]:
    """The whole log, as server-sent events have it."""
    with Stream(f"{server.url}/runs/{run}/events?after=0", **options) as stream:
        return [
            {
                "id": event.id,
                "type": "chunk" if event.type == "message" else event.type,
                "data": json.loads(event.data),
            }
            for event in stream.events()
        ]  # fmt: skip


def run_of(event: dict[str, Any]) -> str:
    run: str = event["id"].rpartition(":")[0]
    return run


# What the tutorials do


@browsers
def test_the_tutorials_page_shows_an_answer_as_it_is_said(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.script = Script(["Rain ", "falls", "."], gated=True)
    page.goto(f"{site.url}/vanilla/chat")
    expect(page.locator("#state")).to_have_text("open")
    page.locator("#question").fill("Where does rain come from?")
    page.get_by_role("button").click()
    for words in ("Rain ", "Rain falls", "Rain falls."):
        provider.allow()
        expect(page.locator("#answer")).to_have_text(words)
    expect(page.locator("#state")).to_have_text("done")
    # A second one on the same connection follows the first.
    provider.script = Script(["Yes"])
    page.locator("#question").fill("Really?")
    page.get_by_role("button").click()
    expect(page.locator("#answer")).to_have_text("Yes")
    expect(page.locator("#state")).to_have_text("done")
    said = [message["content"] for message in provider.calls[-1].json["messages"]]
    assert said == ["Where does rain come from?", "Rain falls.", "Really?"]


@browsers
def test_a_failed_answer_says_so_and_ends(page: Page, site: Server) -> None:
    page.goto(f"{site.url}/vanilla/broken")
    expect(page.locator("#state")).to_have_text("open")
    page.locator("#question").fill("x")
    page.get_by_role("button").click()
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#answer")).to_have_text("One Error: Something went wrong while answering.")


@browsers
def test_the_tutorials_graph_keeps_its_state_per_session(
    page: Page, site: Server, provider: Provider
) -> None:
    def ask(question: str) -> None:
        page.locator("#question").fill(question)
        page.get_by_role("button").click()
        expect(page.locator("#state")).to_have_text("done")
        expect(page.locator("#steps li")).to_have_text(["talk start", "talk done"])

    def visit() -> None:
        page.goto(f"{site.url}/steps")
        expect(page.locator("#state")).to_have_text("open")

    cookie = session("p")["Cookie"].partition("=")
    page.context.add_cookies([{"name": cookie[0], "value": cookie[2], "url": site.url}])
    provider.script = Script(["Hello Bob"])
    visit()
    ask("I am Bob")
    provider.script = Script(["Bob"])
    visit()  # another connection
    ask("Who am I?")
    said = [message["content"] for message in provider.calls[-1].json["messages"]]
    assert said == ["I am Bob", "Hello Bob", "Who am I?"]


# Frames in and out


def test_a_text_is_a_question_and_events_come_out(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"])
    with ws(site) as socket:
        socket.say("What?")
        events = socket.events()
        types = [event["type"] for event in events]
        assert types == ["start", "message_start", "chunk", "chunk", "usage", "end"] or types == [
            "start", "message_start", "chunk", "chunk", "end",
        ]  # fmt: skip
        assert places(events) == list(range(1, len(events) + 1))
        assert events[0]["data"]["input"] == {"question": "What?"}
        assert events == log_of(site, run_of(events[0]))
        assert socket.leave() == 1000


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("42", "42"),
        ('"quoted"', '"quoted"'),
        ("[1, 2]", "[1, 2]"),
        ('{"question": ', '{"question":'),
        ('{"x": NaN}', '{"x": NaN}'),
        ("Grüße 😀", "Grüße 😀"),
    ],
)
def test_what_is_no_object_is_a_question(site: Server, text: str, question: str) -> None:
    with ws(site) as socket:
        socket.say(text)
        start = socket.event()
        assert start["data"]["input"]["question"].strip() == question
        socket.events()


@pytest.mark.parametrize("field", ["question", "message", "input"])
def test_a_question_may_be_called_any_of_these(site: Server, field: str) -> None:
    with ws(site) as socket:
        socket.ask(**{field: "What?"})
        assert socket.events()[0]["data"]["input"] == {"question": "What?"}


def test_text_format_is_the_text_and_its_end(site: Server, provider: Provider) -> None:
    provider.script = Script(["a ", "b\n", "😀"], reasoning=["hm"])
    with ws(site, query="?format=text") as socket:
        for _ in range(2):
            socket.say("What?")
            assert [socket.next() for _ in range(4)] == ["a ", "b\n", "😀", "<END_STREAM>"]
        socket.ask(question="")
        assert [socket.next(), socket.next()] == ["Error: The question is empty.", "<END_STREAM>"]


def test_what_a_model_says_is_not_its_end(site: Server, provider: Provider) -> None:
    said = ["Say ", END, "<END_STREAM> ", END, END, "."]
    provider.script = Script(said)
    with ws(site, query="?format=text") as socket:
        socket.say("How do I know that you have finished?")
        frames: list[str] = []
        while not frames or frames[-1] != END:
            frames.append(socket.next())
        assert "".join(frames) == "".join(said) + END
        socket.say("And now?")
        assert socket.next() == "Say "


def test_a_refusal_beside_an_answer_is_not_its_end(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    with ws(site, query="?format=text") as socket:
        socket.say("one")
        assert socket.next() == "a"
        socket.say("two")
        assert socket.next().startswith("Error: ")
        provider.release()
        assert [socket.next(), socket.next()] == ["b", "<END_STREAM>"]


def test_no_other_format(site: Server) -> None:
    with pytest.raises(Refused) as refused:
        ws(site, query="?format=html")
    assert (refused.value.status, refused.value.json()["field"]) == (400, "format")


def test_frames_are_joined_into_writes_of_bounded_size() -> None:
    frames = [text_frame("x" * n) for n in (1, 50, 200, 7, 0, 90)]
    writes = join_frames(frames, 100)
    assert b"".join(writes) == b"".join(frames)
    assert [len(write) for write in writes] == [55, 204, 11, 92]
    assert join_frames([], 100) == []
    events = [Event(1, "chunk", '{"content":"\\ud800"}'), Event(0, "end", "{}")]
    (write,) = event_frames("r", events)
    assert b'{"id":"r:1","type":"chunk","data":{"content":"\\ud800"}}' in write
    assert b'{"id":null,"type":"end","data":{}}' in write


# Many on one connection


def test_questions_follow_each_other(site: Server, provider: Provider) -> None:
    with ws(site) as socket:
        socket.say("one")
        first = socket.events()[0]["data"]
        socket.say("two")
        second = socket.events()[0]["data"]
        assert second["conversation"] == first["conversation"]
        assert second["parent"] == first["run"]
        said = [message["content"] for message in provider.calls[-1].json["messages"]]
        assert said == ["one", "Hello world", "two"]
        # To begin anew is said; what comes then follows that.
        socket.ask(question="three", parent=None)
        third = socket.events()[0]["data"]
        assert third["parent"] is None
        socket.say("four")
        assert socket.events()[0]["data"]["parent"] == third["run"]
        # So is what it follows.
        socket.ask(question="five", parent=first["run"])
        fifth = socket.events()[0]["data"]
        assert fifth["parent"] == first["run"]
        socket.say("six")
        assert socket.events()[0]["data"]["parent"] == fifth["run"]


def test_runs_of_their_own_stand_side_by_side(site: Server, provider: Provider) -> None:
    provider.scripts = {
        name: Script([f"{name}{n} " for n in range(20)], delay=0.01) for name in ("a", "b", "c")
    }
    runs = {name: f"{name * 8}{random.randrange(10**20):020}" for name in ("a", "b", "c")}
    events: dict[str, list[dict[str, Any]]] = {run: [] for run in runs.values()}
    with ws(site) as socket:
        for name, run in runs.items():
            socket.ask(question=name, run=run)
        order = []
        while sum(event["type"] == "end" for said in events.values() for event in said) < 3:
            event = socket.event()
            order.append(run_of(event))
            events[order[-1]].append(event)
        assert order != sorted(order, key=order.index), "one after another"
        for name, run in runs.items():
            assert places(events[run]) == list(range(1, len(events[run]) + 1))
            assert text_of(events[run]) == "".join(f"{name}{n} " for n in range(20))
    # The same again is the same run.
    with ws(site) as socket:
        socket.ask(question="a", run=runs["a"])
        assert socket.events() == events[runs["a"]]
        socket.ask(question="other", run=runs["a"])
        error = socket.event()
        assert error["type"] == "error"
        assert error["data"] | {"detail": ""} == {
            "status": 409, "detail": "", "field": "run", "run": runs["a"],
        }  # fmt: skip
    assert len(provider.calls) == 3


def test_a_new_question_waits_is_refused_or_interrupts(site: Server, provider: Provider) -> None:
    provider.scripts["one"] = Script(["a", "b"], stall=1)
    with ws(site) as socket:
        socket.say("one")
        first = socket.events("chunk")[0]["data"]["run"]
        socket.say("two")
        error = socket.event()["data"]
        assert (error["status"], error["field"]) == (409, "conversation")
        socket.ask(question="three", multitask="interrupt")
        end, *events = socket.events() + socket.events()
        assert (run_of(end), end["data"]["status"]) == (first, "cancelled")
        assert events[0]["data"]["parent"] == first
        assert events[-1]["data"]["status"] == "done"
        assert provider.calls[0].wait_closed()
    with ws(site, "interrupt") as socket:
        socket.say("one")
        socket.events("chunk")
        socket.say("two")
        assert [socket.events()[-1]["data"]["status"] for _ in "12"] == ["cancelled", "done"]
    with ws(site, "queue") as socket:
        socket.say("one")
        socket.events("chunk")
        socket.say("two")
        assert socket.event()["type"] == "start"
        provider.release()
        seen = socket.events() + socket.events()
        assert [event["data"]["status"] for event in seen if event["type"] == "end"] == ["done"] * 2


def test_a_message_stops_a_run(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    for say in ("last", "run", "both"):
        with ws(site) as socket:
            socket.say("stop this")
            run = run_of(socket.events("chunk")[0])
            messages: dict[str, dict[str, Any]] = {
                "last": {"cancel": True},
                "run": {"cancel": run},
                "both": {"cancel": True, "run": run},
            }
            message = messages[say]
            socket.ask(**message)
            end = socket.events()[-1]
            assert (run_of(end), end["data"]["status"]) == (run, "cancelled")
            assert provider.calls[-1].wait_closed()
            # What has ended can be stopped as often as one likes.
            socket.ask(**message)
            socket.say("And now?")
            assert socket.events("chunk")[0]["type"] == "start"
            socket.ask(cancel=True)
            assert socket.events()[-1]["data"]["status"] == "cancelled"


class FaultySession:
    """A session in which nothing can be stopped."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def start(self, message: Mapping[str, Any]) -> Run:
        raise AssertionError("nobody asks")

    def read(self, cursor: Cursor) -> LogReader | None:
        raise AssertionError("nobody reads")

    def cancel(self, run: str) -> Run:
        raise self._error

    def check(self) -> None:
        """Nothing."""


class Forever:
    """A permit."""

    def due(self) -> float:
        return float("inf")

    def refusal(self) -> str | None:
        return None

    def leave(self) -> None:
        """Nothing."""


def opened(sock: Any, write_timeout: float = 1) -> WebSocket:
    """A connection whose handshake has been made, on a socket of the test's."""
    key = base64.b64encode(bytes(16)).decode()
    headers = {"Host": "localhost", "Connection": "Upgrade", "Upgrade": "websocket"}
    headers |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
    return WebSocket(sock, accept_handshake(headers.get, BODY), write_timeout)


def read_until(sock: Any, end: bytes) -> bytes:
    """Read from a socket until what was read ends with `end`."""
    read = b""
    while not read.endswith(end):
        data = sock.recv(65536)
        assert data, read
        read += data
    return read


def masked(opcode: int, data: bytes) -> bytes:
    """A client's frame of less than 126 bytes; a mask of zeros leaves the data as it is."""
    return bytes((0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0)) + data


@pytest.mark.parametrize("format", ["native", "text"])
@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [(RuntimeError("secret"), 500, "Something went wrong."), (NotFound("No."), 404, "No.")],
)
def test_a_stop_that_fails_is_told(
    caplog: pytest.LogCaptureFixture, format: str, error: Exception, status: int, detail: str
) -> None:
    near, far = socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        far.settimeout(10)
        limits = ConnectionLimits(heartbeat=60, patience=60, size=BODY)
        connection = WebSocketConnection(
            opened(near), FaultySession(error), Forever(), limits, format
        )
        read_until(far, b"\r\n\r\n")
        running = pool.submit(connection.run)
        far.sendall(masked(TEXT, json.dumps({"cancel": NOWHERE}).encode()))
        data = {"status": status, "detail": detail, "field": None, "run": NOWHERE}
        wanted = text_frame(json.dumps({"id": None, "type": "error", "data": data}))
        if format == "text":
            wanted = text_frame(f"Error: {detail}") + text_frame(END)
        assert read_until(far, wanted) == wanted
        far.close()
        running.result(10)
    assert ("RuntimeError: secret" in caplog.text) == (status == 500)


def test_a_close_ends_a_receive_although_the_client_is_silent() -> None:
    near, far = socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        websocket = opened(near)
        receiving = pool.submit(websocket.receive)
        websocket.close(1012, "Go. " + "ü" * 200)
        far.settimeout(10)
        read = read_until(far, "ü".encode())
        assert b"\x03\xf4Go. " in read
        assert far.recv(100) == b""  # cut in the middle of the reason, and of no character
        with pytest.raises(WebSocketClosed):
            receiving.result(10)
        with pytest.raises(BrokenPipeError):
            websocket.send(text_frame("more"))
        websocket.finish()


def test_a_run_can_be_stopped_on_another_connection(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    with ws(site) as one, ws(site) as two:
        one.say("stop this")
        run = run_of(one.events("chunk")[0])
        two.ask(cancel=True)
        assert two.event()["data"]["field"] == "cancel"
        two.ask(cancel=run)
        assert one.events()[-1]["data"]["status"] == "cancelled"


# Coming back


def test_a_lost_connection_is_no_stop_and_a_new_one_resumes_exactly(
    site: Server, provider: Provider
) -> None:
    numbers = 2000
    events: list[dict[str, Any]] = []
    received: list[bytes] = []
    seeded = random.Random(7)
    socket = ws(site, "count")
    socket.say(f"{numbers} 0.001")
    run, reconnects = "", 0
    while not events or events[-1]["type"] != "end":
        try:
            for _ in range(seeded.randrange(1, 40)):
                events.append(socket.event())
                if events[-1]["type"] == "end":
                    break
        finally:
            received += socket.received
        run = run_of(events[0])
        # As often as not what was already on its way is thrown away with the connection.
        (socket.reset if seeded.random() < 0.5 else socket.close)()
        if events[-1]["type"] != "end":
            reconnects += 1
            socket = ws(site, "count")
            if reconnects % 2:
                socket.ask(run=run, after=len(events))
            else:
                socket.ask(after=events[-1]["id"])
    assert reconnects > 30
    assert places(events) == list(range(1, len(events) + 1))
    assert text_of(events) == "".join(f"{number} " for number in range(numbers))
    with ws(site) as socket:
        socket.ask(run=run, after=0)
        assert socket.events() == events
        assert socket.received == received
        socket.ask(run=run, after=len(events))
        assert socket.event() == {
            "id": None, "type": "complete", "data": {"run": run, "seq": len(events)},
        }  # fmt: skip
    with ws(site, query="?format=text") as socket:
        socket.ask(run=run, after=len(events))
        assert socket.next() == "<END_STREAM>"


def test_a_run_goes_on_without_its_connection(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with ws(site) as socket:
        socket.say("go on")
        provider.allow()
        run = run_of(socket.events("chunk")[0])
        socket.reset()
    wait_for(lambda: left(site)["sockets"] == 0)
    provider.allow(2)
    events = log_of(site, run)
    assert text_of(events) == "abc"
    assert events[-1]["data"] == {"status": "done", "finish_reason": "stop", "error": None}


def test_following_again_on_one_connection_begins_at_the_new_place(site: Server) -> None:
    with ws(site, "count") as socket:
        socket.say("300 0.005")
        run = run_of(socket.event())
        for _ in range(20):
            socket.ask(run=run, after=0)
        events = socket.events()
    # From the last of the starts on, everything is there once.
    last = max(place for place, event in enumerate(events) if event["type"] == "start")
    assert places(events[last:]) == list(range(1, len(events) - last + 1))
    assert text_of(events[last:]) == "".join(f"{number} " for number in range(300))


@pytest.mark.parametrize("whose", ["one", "two"])
def test_the_worker_is_killed_and_another_goes_on_byte_for_byte(
    provider: Provider, tmp_path: Path, whose: str
) -> None:
    """The run's own worker (`one`), or that of the connection alone (`two`)."""
    provider.script = Script([f"word{n} " for n in range(40)], gated=True)
    with wires(provider, tmp_path) as one, wires(provider, tmp_path) as two:
        run = request(
            "POST",
            f"{(one if whose == 'one' else two).url}/runs",
            json={"chain": "chat", "input": "kill"},
        ).json()["run"]
        with ws(one) as socket:
            socket.ask(run=run, after=0)
            provider.allow(10)
            seen = [socket.event() for _ in range(10)]
            os.kill(one.workers[-1], signal.SIGKILL)
            assert socket.end() == 1006
        got = list(socket.received)
        with ws(two) as socket:
            socket.ask(run=run, after=len(got))
            provider.allow(30)
            socket.events()
            got += socket.received
        assert len(got) > len(seen)
        with ws(two) as socket:
            socket.ask(run=run, after=0)
            whole = socket.events()
            assert socket.received == got
        end = whole[-1]["data"]
        if whose == "one":
            assert end["error"]["code"] == "worker_lost"
        else:
            assert end == {"status": "done", "finish_reason": "stop", "error": None}
            assert text_of(whole) == "".join(f"word{n} " for n in range(40))
    assert len(provider.calls) == 1


def test_two_workers_of_one_service_and_a_kill(provider: Provider, tmp_path: Path) -> None:
    provider.script = Script([f"word{n} " for n in range(30)], stall=10)
    with wires(provider, tmp_path, "--workers", "2") as server:
        with ws(server) as socket:
            socket.say("kill")
            seen = socket.events("chunk")
            run = run_of(seen[0])
            wait_for(lambda: len(server.workers) == 2)
            # Which of them has it is known by whoever has the provider's connection.
            port = provider.server_address[1]
            (owner,) = [pid for pid in server.workers if connected(pid, port)]
            os.kill(owner, signal.SIGKILL)
            socket.end()
        got = list(socket.received)
        with ws(server) as socket:
            socket.ask(run=run, after=len(got))
            end = socket.events()[-1]
            got += socket.received
        assert end["data"]["error"]["code"] == "worker_lost"
        with ws(server) as socket:
            socket.ask(run=run, after=0)
            socket.events()
            assert socket.received == got
    assert len(provider.calls) == 1


def connected(pid: int, port: int) -> bool:
    """Whether a process has a connection to a port of loopback."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except OSError:
            continue
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    remote = f"0100007F:{port:04X}"
    return any(line[2] == remote and f"socket:[{line[9]}]" in inodes for line in lines)


# State per session


def test_a_session_goes_on_over_connections_workers_and_restarts(
    provider: Provider, tmp_path: Path
) -> None:
    who = session("s")

    def ask(server: Server, message: str, **more: Any) -> list[str]:
        with ws(server, "agent", headers=who) as socket:
            socket.ask(session_id="a session", message=message, **more)
            events = socket.events()
            assert events[-1]["data"]["status"] == "done"
            assert [e["data"]["status"] for e in events if e["type"] == "step"] == ["start", "done"]
        return [said["content"] for said in provider.calls[-1].json["messages"]]

    provider.script = Script(["ok"])
    with wires(provider, tmp_path) as one:
        with wires(provider, tmp_path) as two:
            assert ask(one, "one") == ["one"]
            assert ask(two, "two") == ["one", "ok", "two"]
            assert ask(one, "three") == ["one", "ok", "two", "ok", "three"]
        os.kill(one.workers[-1], signal.SIGKILL)
        wait_for(lambda: len(one.workers) == 2)
    with wires(provider, tmp_path) as anew:
        assert ask(anew, "four")[-3:] == ["three", "ok", "four"]
        # Another session, and another person's of the same name, know nothing of it.
        with ws(anew, "agent", headers=who) as socket:
            socket.ask(session_id="another", message="five")
            socket.events()
        assert [said["content"] for said in provider.calls[-1].json["messages"]] == ["five"]
        with ws(anew, "agent", headers=session("t")) as socket:
            socket.ask(session_id="a session", message="six")
            socket.events()
        assert [said["content"] for said in provider.calls[-1].json["messages"]] == ["six"]


def test_without_a_cookie_a_session_is_its_connections(site: Server, provider: Provider) -> None:
    def asked() -> list[str]:
        return [said["content"] for said in provider.calls[-1].json["messages"]]

    provider.script = Script(["ok"])
    with ws(site, "agent") as one, ws(site, "agent") as two:
        one.ask(session_id="x", message="one")
        last = one.events()[0]["data"]["run"]
        one.ask(session_id="y", message="aside")
        one.events()
        assert asked() == ["aside"]
        one.ask(session_id="x", message="two")
        last = one.events()[0]["data"]["run"]
        assert asked() == ["one", "ok", "two"]
        # A stranger with the same session, and the same address.
        two.ask(session_id="x", message="three", multitask="interrupt")
        two.events()
        assert asked() == ["three"]
        # Who knows the run's id goes on after it.
        two.ask(session_id="x", message="four", parent=last)
        two.events()
        assert asked() == ["one", "ok", "two", "ok", "four"]
        two.say("five")
        two.events()
        assert asked() == ["one", "ok", "two", "ok", "four", "ok", "five"]


def test_strangers_with_one_session_do_not_stop_each_other(
    site: Server, provider: Provider
) -> None:
    provider.scripts["long"] = Script(["a", "b"], stall=1)
    with ws(site, "interrupt") as one, ws(site, "interrupt") as two:
        one.ask(session_id="user-1", message="long")
        one.events("chunk")
        two.ask(session_id="user-1", message="short")
        assert two.events()[-1]["data"]["status"] == "done"
        provider.release()
        assert one.events()[-1]["data"]["status"] == "done"


# Bad frames


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('{"question": 1}', "question"),
        ('{"question": ""}', "question"),
        ('{"question": "\\u0000"}', "question"),
        ('{"question": "\\ud800"}', "question"),
        ('{"question": null}', "question"),
        ('{"question": "' + "x" * 9000 + '"}', "question"),
        ('{"message": ["a"]}', "message"),
        ('{"input": 5}', "input"),
        ('{"input": {}}', "input"),
        ("{}", "question"),
        ('{"question": "a", "message": "b"}', "question"),
        ('{"question": "a", "resume": 1}', "question"),
        ('{"question": "a", "colour": "red"}', "colour"),
        ('{"question": "a", "run": "short"}', "run"),
        ('{"question": "a", "run": 7}', "run"),
        ('{"question": "a", "conversation": "no"}', "conversation"),
        ('{"question": "a", "session_id": ""}', "session_id"),
        ('{"question": "a", "session_id": 7}', "session_id"),
        ('{"question": "a", "session_id": "\\ud800"}', "session_id"),
        ('{"question": "a", "parent": "' + NOWHERE + '"}', "parent"),
        ('{"question": "a", "multitask": "later"}', "multitask"),
        ('{"resume": "yes"}', "resume"),
        ('{"cancel": true}', "cancel"),
        ('{"cancel": 7}', "cancel"),
        ('{"cancel": "' + NOWHERE + '"}', "run"),
        ('{"run": "' + NOWHERE + '", "after": 0}', "run"),
        ('{"run": "' + NOWHERE + '", "after": -1}', "after"),
        ('{"run": "' + NOWHERE + '", "after": 1.5}', "after"),
        ('{"run": "' + NOWHERE + '", "after": true}', "after"),
        ('{"run": "' + NOWHERE + '", "after": null}', "after"),
        ('{"run": "' + NOWHERE + '", "after": [1]}', "after"),
        ('{"run": "no id", "after": 1}', "run"),
        ('{"run": 7, "after": 1}', "run"),
        ('{"run": {}, "after": 1}', "run"),
        ('{"after": 7}', "after"),
        ("   ", "question"),
        ("[" * 90_000, "frame"),
    ],
)
def test_a_bad_message_is_told_its_field_and_the_connection_stays(
    site: Server, provider: Provider, message: str, field: str
) -> None:
    with ws(site) as socket:
        socket.say(message)
        error = socket.event()
        assert (error["id"], error["type"]) == (None, "error")
        assert error["data"]["field"] == field, error
        assert 400 <= error["data"]["status"] < 500
        assert provider.calls == []
        socket.say("Still there?")
        assert text_of(socket.events()) == "Hello world"


def test_bytes_are_refused_and_the_connection_stays(site: Server) -> None:
    with ws(site) as socket:
        socket.send_frame(BINARY, b'{"question": "x"}')
        assert socket.event()["data"]["field"] == "frame"
        socket.say("Still there?")
        socket.events()


def test_a_text_in_fragments_is_one_text(site: Server) -> None:
    text = json.dumps({"question": "Grüße 😀 " + "x" * 6000}, ensure_ascii=False).encode()
    with ws(site) as socket:
        # Cut in the middle of characters as well, with pings between.
        cuts = [0, 1, 15, 16, 22, 23, 24, 5000, len(text)]
        for place, (start, end) in enumerate(pairwise(cuts)):
            socket.send_frame(
                CONTINUATION if place else TEXT, text[start:end], fin=end == len(text)
            )
            socket.send_frame(PING, b"between")
        asked = socket.events()[0]["data"]["input"]["question"]
        assert asked == "Grüße 😀 " + "x" * 6000
        socket.send_frame(TEXT, b"", fin=False)
        socket.send_frame(CONTINUATION, b"a", fin=False)
        socket.send_frame(CONTINUATION, b"", fin=True)
        assert socket.events()[0]["data"]["input"] == {"question": "a"}


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(TEXT, b"\xff\xfe", True)], 1007),
        ([(TEXT, b"\xc3", False), (CONTINUATION, b"\x28", True)], 1007),
        ([(TEXT, b"\xed\xa0\x80", True)], 1007),  # half of a surrogate pair
        ([(CONTINUATION, b"x", True)], 1002),  # of nothing
        ([(TEXT, b"x", False), (TEXT, b"y", True)], 1002),
        ([(3, b"x", True)], 1002),
        ([(PING, b"x" * 126, True)], 1002),
        ([(PING, b"x", False)], 1002),
        ([(CLOSE, b"\x03", True)], 1002),
        ([(TEXT, b"x" * (BODY + 1), True)], 1009),
        ([(TEXT, "ü".encode() * (BODY // 2 + 1), True)], 1009),
        ([(BINARY, b"x" * (BODY + 1), True)], 1009),
        ([(TEXT, b"x" * 60_000, False), (CONTINUATION, b"x" * 60_000, True)], 1009),
        ([(TEXT, b"x" * 2_000_000, True)], 1009),  # most of it is never looked at
    ],
)
def test_what_is_no_websocket_is_closed_with_its_code(
    site: Server, provider: Provider, frames: list[tuple[int, bytes, bool]], code: int
) -> None:
    with ws(site) as socket:
        for opcode, data, fin in frames:
            socket.send_frame(opcode, data, fin=fin)
        assert socket.end(5) == code
    assert provider.calls == []
    wait_for(lambda: left(site)["sockets"] == 0)


def test_the_longest_message_that_may_be(site: Server) -> None:
    with ws(site) as socket:
        head = json.dumps({"question": "a", "colour": ""})
        socket.say(head[:-2] + "x" * (BODY - len(head)) + head[-2:])
        assert socket.event()["data"]["field"] == "colour"


# Pings, and those who do not read


def test_it_pings_and_lets_go_of_who_does_not_answer(site: Server) -> None:
    with ws(site) as quiet:
        quiet.answers_pings = False
        assert quiet.next_frame().opcode == PING
        began = time.monotonic()
        assert quiet.end() == 1013
        assert WRITE - 0.1 <= time.monotonic() - began < WRITE + 2 * HEARTBEAT + 1
    wait_for(lambda: left(site)["sockets"] == 0)


def test_it_pings_and_keeps_who_answers(site: Server) -> None:
    with ws(site) as there:
        with pytest.raises(TimeoutError):
            there.next(2.5 * WRITE)
        assert there.pings >= 2.5 * WRITE / HEARTBEAT - 3


def test_an_answered_ping_says_what_was_asked(site: Server) -> None:
    with ws(site) as socket:
        socket.send_frame(PING, b"echo")
        frame = socket.next_frame()
        while frame.opcode == PING:
            frame = socket.next_frame()
        assert (frame.opcode, frame.data) == (PONG, b"echo")
        socket.send_frame(PONG, b"unasked")
        socket.say("Still there?")
        socket.events()


def test_a_flood_of_pings_holds_up_nobody(site: Server, provider: Provider) -> None:
    provider.script = Script(["a"])
    stop = threading.Event()
    with ws(site) as flood:
        pings = flood.frame(PING, b"x" * 100) * 500

        def send() -> None:
            while not stop.is_set():
                flood.socket.sendall(pings)

        def read() -> None:
            with suppress(ConnectionResetError):  # what it still says when it is shut down
                while flood.socket.recv(1 << 20):
                    pass

        flood.socket.settimeout(None)
        threads = [threading.Thread(target=work, daemon=True) for work in (send, read)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                with ws(site) as socket:
                    socket.say("Hello")
                    assert socket.events()[-1]["type"] == "end"
            assert all(thread.is_alive() for thread in threads)
        finally:
            stop.set()
            threads[0].join()
            flood.socket.shutdown(SHUT_RDWR)
            threads[1].join()


def test_a_flood_of_messages_waits_outside(site: Server, provider: Provider) -> None:
    provider.script = Script(["a"])
    with ws(site) as flood:
        before = memory(site)
        bad = flood.frame(TEXT, b'{"colour": "' + b"x" * 50_000 + b'"}')
        flood.socket.setblocking(False)
        sent = 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                sent += flood.socket.send(bad[sent % len(bad) :])
            except BlockingIOError:
                # It does not take it all: the errors are not read.
                with ws(site) as socket:
                    socket.say("Hello")
                    socket.events()
        assert memory(site) - before < 50_000_000
        assert sent < 500_000_000


def memory(server: Server) -> int:
    status = Path(f"/proc/{server.workers[-1]}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("chain", ["much", "count"])
def test_who_never_reads_is_closed_with_1013_and_resumes(site: Server, chain: str) -> None:
    question, numbers = ("2000", 2000) if chain == "much" else ("60000", 60_000)
    with ws(site, chain, receive_buffer=4096) as slow:
        slow.say(question)
        run = run_of(slow.event())
        # Nothing is read, so no ping is answered; its run is not held up.
        events = log_of(site, run)
        assert len(events) == numbers + 3
        wait_for(lambda: left(site)["sockets"] == 0)
        # What was on its way comes, whole, and why it is the last.
        slow.answers_pings = False
        assert slow.end() == 1013
    seen = [json.loads(told) for told in slow.received]
    assert seen == events[: len(seen)]
    assert len(seen) < len(events)
    with ws(site, chain) as socket:
        socket.ask(run=run, after=len(seen))
        assert seen + socket.events() == events


def test_who_reads_slowly_but_reads_is_kept(site: Server) -> None:
    with ws(site, "much", receive_buffer=4096) as slow:
        slow.say("200")
        until = time.monotonic() + 2 * WRITE
        events = []
        while time.monotonic() < until:
            events.append(slow.event())
            time.sleep(0.02)
        while events[-1]["type"] != "end":
            events.append(slow.event())
        assert places(events) == list(range(1, 204))


# Going


def test_everything_is_given_back(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)

    def settle() -> dict[str, int]:
        provider.release()
        wait_for(lambda: left(site)["sockets"] == 0)
        wait_for(lambda: request("GET", f"{site.url}/health/ready").json()["live_runs"] == 0)
        return at_rest(site)

    def use() -> None:
        with ExitStack() as stack:
            for n in range(12):
                socket = stack.enter_context(ws(site))
                socket.say("open")
                socket.events("chunk")
                socket.ask(question="beside", run=f"{n:04}{random.randrange(10**28):028}")
                socket.events("chunk")
                if n % 4 == 0:
                    socket.reset()
                elif n % 4 == 1:
                    socket.leave()
                elif n % 4 == 2:
                    socket.send_frame(3, b"nonsense")
            # In the handshake, too.
            for headers in ({"Sec-WebSocket-Key": "short"}, {"Sec-WebSocket-Version": "8"}):
                with pytest.raises(Refused) as refused:
                    ws(site, headers=headers)
                assert refused.value.status == 400
                assert refused.value.json()["field"] == next(iter(headers))

    use()
    before = settle()
    use()
    after = settle()
    assert after["seats"] == before["seats"] == 0
    assert after["greenlets"] <= before["greenlets"]
    assert after["files"] <= before["files"]


def test_a_question_before_a_close_is_asked_all_the_same(site: Server, provider: Provider) -> None:
    with ws(site) as socket:
        socket.say("Bye")
        assert socket.leave() == 1000
    assert provider.wait_calls(1)
    assert provider.calls[0].question == "Bye"


def test_a_closed_connection_stays_closed(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with ws(site) as socket:
        socket.say("in the middle")
        provider.allow()
        socket.events("chunk")
        socket.send_frame(CLOSE, (3000).to_bytes(2, "big") + b"enough")
        provider.allow(2)
        assert socket.end() == 3000
        with pytest.raises(Ended):
            socket.next()


def test_a_worker_that_leaves_says_1012_and_nothing_is_lost(
    provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script([f"word{n} " for n in range(20)], gated=True)
    with wires(provider, tmp_path) as stays, wires(provider, tmp_path) as leaves:
        with ExitStack() as stack:
            sockets = [stack.enter_context(ws(leaves)) for _ in range(9)]
            asking = sockets[0]
            asking.say("deploy")
            provider.allow(5)
            run = run_of(asking.event())
            while text_of([asking.event()]) != "word4 ":
                pass
            idle = sockets[1:]
            began = time.monotonic()
            leaves.process.send_signal(signal.SIGTERM)
            ends = [socket.end() for socket in sockets]
            assert ends == [1012] * 9
            assert time.monotonic() - began < 6
            assert len(idle) == 8
        got = list(asking.received)
        with ws(stays) as socket:
            socket.ask(run=run, after=len(got))
            provider.allow(15)
            events = socket.events()
            got += socket.received
            assert events[-1]["data"] == {"status": "done", "finish_reason": "stop", "error": None}
        with ws(stays) as socket:
            socket.ask(run=run, after=0)
            assert text_of(socket.events()) == "".join(f"word{n} " for n in range(20))
            assert socket.received == got
        assert leaves.stop() == 0
    assert len(provider.calls) == 1


def test_a_broken_network_and_a_new_one(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    port = int(site.url.rpartition(":")[2])
    with Proxy(port) as proxy, ws(proxy.url) as socket:
        socket.say("through")
        provider.allow()
        seen = socket.events("chunk")
        proxy.cut()
        assert socket.end() == 1006
        provider.allow(2)
        with ws(proxy.url) as again:
            again.ask(run=run_of(seen[0]), after=len(seen))
            assert text_of(seen + again.events()) == "abc"


# Who may


OWN, LISTED = "own", "https://example.org"


@pytest.fixture(scope="module")
def _closed(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[people.Site]:
    folder = tmp_path_factory.mktemp("closed")
    with users(
        _provider,
        folder,
        **people.settings("jwt"),
        origins=LISTED,
        recheck=1,
        max_streams=3,
        max_streams_per_address=6,
        start_limit="5/hour",
    ) as server:
        yield people.Site(server, "jwt")


@pytest.fixture
def closed(_closed: people.Site, provider: Provider) -> people.Site:
    """A service whose people have tokens; `open` is for anyone."""
    return _closed


def status_of(call: Callable[[], Socket]) -> int:
    """The status with which a handshake is answered; 101 if it is one."""
    try:
        with call():
            return 101
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        (OWN, 101),
        (LISTED, 101),
        ("http://127.0.0.1:1", 403),  # another port
        ("https://evil.example", 403),
        ("null", 403),
        ("https://example.org.evil.example", 403),
        ("http://example.org", 403),
    ],
)
def test_origins_at_the_handshake(
    closed: people.Site, provider: Provider, origin: str | None, status: int
) -> None:
    said = {"Origin": closed.url if origin == OWN else origin} if origin else {}
    assert status_of(lambda: ws(closed.server, "open", headers=said)) == status
    # Who carries a token is no page that somebody else has sent.
    token_too = said | bearer(token(sub=f"origin{origin}"))
    assert status_of(lambda: ws(closed.server, "chat", headers=token_too)) == 101
    assert provider.calls == []


@browsers
def test_a_page_of_another_site_opens_no_socket(
    page: Page, site: Server, provider: Provider
) -> None:
    opened = """(url) => new Promise((resolve) => {
        const socket = new WebSocket(url);
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("refused");
    })"""
    url = site.url.replace("http", "ws") + "/ws/chat"
    with Pages() as pages:
        for host in ("other.localhost", "127.0.0.1"):
            page.goto(pages.origin(host))
            assert page.evaluate(opened, url) == "refused"
    page.goto(f"{site.url}/vanilla/chat")
    assert page.evaluate(opened, url) == "open"
    assert provider.calls == []


def test_identities_at_the_handshake(closed: people.Site) -> None:
    assert status_of(lambda: ws(closed.server, "chat")) == 401
    assert status_of(lambda: ws(closed.server, "open")) == 101
    assert status_of(lambda: ws(closed.server, "nothing")) == 404
    old = bearer(token(exp=int(time.time()) - 10))
    assert status_of(lambda: ws(closed.server, "open", headers=old)) == 401
    assert request("GET", f"{closed.url}/ws/open").status == 400


def test_anothers_run_is_none(closed: people.Site, provider: Provider) -> None:
    alice, bob = (bearer(token(sub=name)) for name in ("alice1", "bob1"))
    provider.script = Script(["a", "b"], stall=1)
    with (
        ws(closed.server, headers=alice) as hers,
        ws(closed.server, headers=bob) as his,
        ws(closed.server, "open") as anyone,
    ):
        hers.say("mine")
        run = run_of(hers.events("chunk")[0])
        for other in (his, anyone):
            answers = []
            for id in (run, NOWHERE):
                for message in (
                    {"run": id, "after": 0},
                    {"cancel": id},
                    {"question": "x", "parent": id},
                ):
                    other.ask(**message)
                    told = other.event()
                    assert told["type"] == "error"
                    answers.append(json.dumps(told).replace(id, "id"))
            assert answers[:3] == answers[3:]
        his.ask(question="mine", run=run)
        assert his.event()["data"]["status"] == 404
        provider.release()
        assert hers.events()[-1]["data"]["status"] == "done"


def test_a_ticket_is_good_for_its_run_alone(closed: people.Site, provider: Provider) -> None:
    who = bearer(token(sub="ticket"))
    made = request("POST", f"{closed.url}/tickets", json={"chain": "chat"}, headers=who).json()
    query = f"?ticket={quote(made['ticket'])}"
    foreign = {"Origin": "https://evil.example"}
    with ws(closed.server, "chat", query, headers=foreign) as socket:
        socket.say("With a ticket")
        events = socket.events()
        assert run_of(events[0]) == made["run"]
        socket.say("Another")
        assert socket.event()["data"]["status"] == 409
        socket.ask(question="x", run=NOWHERE)
        assert socket.event()["data"]["status"] == 404
        socket.ask(run=NOWHERE, after=0)
        assert socket.event()["data"]["status"] == 404
        socket.ask(run=made["run"], after=2)
        assert socket.events() == events[2:]
        assert socket.leave() == 1000
    # Again: the same run.
    with ws(closed.server, "chat", query) as socket:
        socket.say("With a ticket")
        assert socket.events() == events
    with ws(closed.server, "other", query) as socket:
        socket.say("With a ticket")
        assert socket.event()["data"]["status"] == 403
    assert status_of(lambda: ws(closed.server, "chat", query[:-3] + "xxx")) == 401
    assert len(provider.calls) == 1


def test_connections_are_limited_and_so_are_runs(closed: people.Site) -> None:
    who = bearer(token(sub="many"))
    with ExitStack() as stack:
        sockets = [stack.enter_context(ws(closed.server, headers=who)) for _ in range(3)]
        with pytest.raises(Refused) as refused:
            ws(closed.server, headers=who)
        assert refused.value.status == 429
        assert b"Retry-After: " in refused.value.head
        more = [stack.enter_context(ws(closed.server, "open")) for _ in range(3)]
        assert status_of(lambda: ws(closed.server, "open")) == 429
        for n in range(5):
            sockets[n % 3].say("one more")
            assert sockets[n % 3].events()[-1]["type"] == "end"
        sockets[0].say("too many")
        error = sockets[0].event()["data"]
        assert error["status"] == 429
        assert error["retry_after"] >= 1
        assert len(more) == 3
        # Who is looked at again keeps the place.
        assert status_of(lambda: ws(closed.server, headers=who)) == 429
        # A place that is given back is somebody else's.
        sockets[0].leave()
        wait_for(lambda: status_of(lambda: ws(closed.server, headers=who)) == 101)


def test_what_one_connection_has_under_way_is_limited(site: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    with ws(site) as socket:
        for n in range(51):
            socket.ask(question="one more", run=f"{n:04}{random.randrange(10**28):028}")
        told = socket.event()
        while told["type"] != "error":
            told = socket.event()
        assert told["data"]["status"] == 429
        assert told["data"]["run"].startswith("0050")


def test_a_token_that_runs_out_closes_with_4401(closed: people.Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    who = bearer(token(sub="brief", exp=int(time.time()) + 3))
    with ws(closed.server, headers=who) as socket:
        socket.say("until it runs out")
        events = socket.events("unauthorized")
        assert (events[-1]["id"], events[-1]["data"]["code"]) == (None, "unauthorized")
        assert socket.end() == 4401
    anew = bearer(token(sub="brief"))
    with ws(closed.server, headers=anew) as socket:
        socket.ask(run=run_of(events[0]), after=len(events) - 1)
        provider.release()
        assert text_of(events + socket.events()) == "ab"


def test_who_is_revoked_starts_nothing_more(closed: people.Site, provider: Provider) -> None:
    who = bearer(token(sub="revoked"))
    with ws(closed.server, headers=who) as socket:
        socket.say("one")
        socket.events()
        closed.revoke("user:revoked")
        socket.say("two")
        assert socket.events("unauthorized")
        assert socket.end() == 4401
    assert [call.question for call in provider.calls] == ["one"]


def test_pages_of_any_site_ask_public_chains_alone(provider: Provider) -> None:
    env = environment(origins="*", OPENAI_BASE_URL=provider.url)
    with Server(gunicorn(app="tests.public:app"), env) as server:
        foreign = {"Origin": "https://evil.example"}
        assert status_of(lambda: ws(server, "open", headers=foreign)) == 101
        assert status_of(lambda: ws(server, "chat", headers=foreign)) == 403


# Other servers


def certificate(folder: Path) -> Path:
    """A certificate and its key, in one file."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    key = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(key + made.public_bytes(Encoding.PEM))
    return file


def test_a_connection_with_tls(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(file)
    theirs = ssl.create_default_context(cafile=str(file))
    near, far = socketpair()
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(ours.wrap_socket, near, server_side=True)
        with theirs.wrap_socket(far, server_hostname="localhost") as client:
            sealed_end = server.result()
            websocket = opened(sealed_end, write_timeout=0.3)
            client.sendall(masked(TEXT, b"hello"))
            assert websocket.receive(10) == "hello"
            assert websocket.receive(0) is None
            frames = text_frame("x" * 3000)
            websocket.send(frames)
            assert read_until(client, frames).startswith(b"HTTP/1.1 101 ")
            # Nobody reads: a part of a frame was written, and nothing may follow it.
            with pytest.raises(SlowClient):
                websocket.send(text_frame("x" * 10_000_000))
            with pytest.raises(BrokenPipeError):
                websocket.send(text_frame("y"))
            websocket.close(1013, "slow")
            assert websocket.closed
            sealed_end.close()


def test_the_development_server_has_it_as_well(provider: Provider, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "tests.wires:app", "run", "--port", "0"]
    env = environment(OPENAI_BASE_URL=provider.url, heartbeat=HEARTBEAT, write_timeout=WRITE,
                      max_body=BODY)  # fmt: skip
    with Server(command, env) as server:
        provider.script = Script(["a", "b"], gated=True)
        with ws(server) as socket:
            socket.say("Hello")
            provider.allow(2)
            assert text_of(socket.events()) == "ab"
            assert socket.leave() == 1000
        with ws(server) as socket:
            socket.send_frame(TEXT, b"x" * 2_000_000)
            assert socket.end() == 1009
        with ws(server) as quiet:
            quiet.answers_pings = False
            assert quiet.end() == 1013
        assert request("GET", f"{server.url}/health/ready").status == 200
        assert "Traceback" not in server.log


def test_an_apps_own_sockets_are_as_it_has_set_them(tmp_path: Path) -> None:
    from flask import Flask

    from flask_stream import FlaskStream

    app = Flask(__name__, instance_path=str(tmp_path))
    FlaskStream(app, store="memory://")
    assert "SOCK_SERVER_OPTIONS" not in app.config
    app.extensions["flask_stream"].close()
