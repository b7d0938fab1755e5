"""Socket.IO: what is none, what comes twice or changes, and those who do not read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from . import people, sio_sites
from .people import NOWHERE
from .provider import Provider, Script
from .server import Server
from .sio import CLOSE, Client, Poll, Wire
from .sio_sites import UPGRADE, Opened, as_stream_events, asked, either, fresh
from .sse import request
from .test_websocket import BODY, HEARTBEAT, WRITE, at_rest, left, log_of, memory, run_of, wait_for
from .ws import BINARY, TEXT, Ended, places, text_of

folder = sio_sites.folder
_site, site = sio_sites._site, sio_sites.site

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
            there.next_event(1.6 * WRITE)
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
                there.next_event(1.6 * WRITE)
            assert [end.result() for end in ends] == [1000, 1000]
        assert WRITE - 0.2 <= time.monotonic() - began < 2 * WRITE + HEARTBEAT + 1
        wait_for(lambda: left(quiet)["clients"] == 1)


def test_who_never_reads_is_let_go_and_resumes(quiet: Server) -> None:
    with Wire(quiet.url, receive_buffer=4096) as slow:
        slow.connect()
        slow.emit("stream_question", {"chain": "much", "question": "2000"})
        run = run_of(slow.event())
        # Nothing is read, so no ping is answered; its run is not held up.
        events = as_stream_events(log_of(quiet, run))
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
        events = as_stream_events(log_of(quiet, run))
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
        client.wait(lambda: len(client.data_of("stream_error")) == 100)
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
        provider.release()
        wait_for(lambda: left(site)["sessions"] == 0)
        wait_for(lambda: open_runs(site) == 0)
        return at_rest(site)

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
                        client.put(CLOSE)
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
        client.put(f'42["stream_question","Bye"]\x1e{CLOSE}')
    assert provider.wait_calls(1)
    assert provider.calls[0].question == "Bye"
