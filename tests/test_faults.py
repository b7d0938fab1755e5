"""What goes wrong in the night, on real processes: two services on one store, and a scripted model.

Whatever happens, a client that has read to the end has read every event once, in order, and one
`end`; and the model was called once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .provider import Provider, Script
from .server import Server, environment, gunicorn
from .sse import ServerSentEvent, Stream, request
from .valkey import Valkey

LEASE = 3.0


class Pair(NamedTuple):
    """Two services, of one worker each, that share a store."""

    one: Server
    two: Server
    valkey: Valkey | None
    file: Path


@contextmanager
def serving(kind: str, folder: Path, provider: Provider, lease: float) -> Iterator[Pair]:
    file = folder / "runs.db"
    with Valkey(appendonly=True) if kind == "redis" else nullcontext() as valkey:
        env = environment(
            store=valkey.url if valkey else f"sqlite:///{file}",
            lease=lease,
            heartbeat=0.5,
            write_timeout=2,
            checkpoints=valkey.url if valkey else f"sqlite:///{folder}/state.db",
            OPENAI_BASE_URL=provider.url,
        )
        command = gunicorn(app="tests.chains:app")
        with Server(command, env) as one, Server(command, env) as two:
            yield Pair(one, two, valkey, file)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def _pair(
    request: pytest.FixtureRequest, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with serving(request.param, folder, _provider, lease=LEASE) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair, provider: Provider) -> Pair:
    """With a short lease, so that the dead are soon found."""
    return _pair


@pytest.fixture(params=["sqlite", "redis"])
def patient(request: pytest.FixtureRequest, provider: Provider, tmp_path: Path) -> Iterator[Pair]:
    """With the usual lease, which outlasts a store that is away for some seconds."""
    with serving(request.param, tmp_path, provider, lease=15) as pair:
        yield pair


def start(server: Server, question: str, chain: str = "chat") -> str:
    response = request("POST", f"{server.url}/runs", json={"chain": chain, "input": question})
    assert response.status == 201, response.body
    run: str = response.json()["run"]
    return run


def follow(server: Server, run: str, after: int = 0, **options: Any) -> Stream:
    return Stream(f"{server.url}/runs/{run}/events?after={after}", timeout=30, **options)


def status(server: Server, run: str) -> dict[str, Any]:
    described: dict[str, Any] = request("GET", f"{server.url}/runs/{run}").json()
    return described


def place(event: ServerSentEvent) -> int:
    return int(event.id.rpartition(":")[2])


def text(events: list[ServerSentEvent]) -> str:
    return "".join(json.loads(event.data)["content"] for event in events if event.type == "message")


def end_of(events: list[ServerSentEvent]) -> dict[str, Any]:
    """The one end, after every other event, each of which is there once and in order."""
    assert [place(event) for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events].count("end") == 1
    assert events[-1].type == "end"
    end: dict[str, Any] = json.loads(events[-1].data)
    return end


def code_of(events: list[ServerSentEvent]) -> str:
    code: str = end_of(events)["error"]["code"]
    return code


def read(stream: Stream, count: int) -> list[ServerSentEvent]:
    events = [stream.next_event() for _ in range(count)]
    return [event for event in events if event is not None]


def worker(server: Server) -> int:
    return server.workers[-1]


def wait_other_worker(server: Server, old: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if worker(server) != old:
            try:
                if request("GET", f"{server.url}/health/ready").status == 200:
                    return
            except OSError:
                pass
        time.sleep(0.05)
    raise AssertionError(server.log)


# Workers


def test_a_killed_workers_run_ends_worker_lost_once(pair: Pair, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], stall=2)
    run = start(pair.one, "killed")
    with follow(pair.one, run) as here, follow(pair.two, run) as there:
        seen = read(here, 4)
        old = worker(pair.one)
        os.kill(old, signal.SIGKILL)
        events = list(there.events())
    assert events[: len(seen)] == seen
    assert code_of(events) == "worker_lost"
    assert text(events) == "ab"
    wait_other_worker(pair.one, old)
    for server in (pair.one, pair.two):
        with follow(server, run) as again:
            assert list(again.events()) == events
    assert len(provider.calls) == 1


def test_a_frozen_worker_that_comes_back_cannot_write(pair: Pair, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    run = start(pair.one, "frozen")
    with follow(pair.one, run) as here, follow(pair.two, run) as there:
        provider.allow(1)
        seen = read(here, 3)
        os.kill(worker(pair.one), signal.SIGSTOP)
        try:
            events = list(there.events())
            assert code_of(events) == "worker_lost"
            provider.allow(2)
        finally:
            os.kill(worker(pair.one), signal.SIGCONT)
        # Who read at the frozen worker is told the same.
        assert seen + list(here.events()) == events
    assert provider.calls[0].sent >= 1
    with follow(pair.one, run) as again:
        assert list(again.events()) == events
    assert status(pair.one, run)["status"] == "failed"
    assert len(provider.calls) == 1


def test_a_chain_for_that_is_started_anew_and_no_more_than_it_may(
    pair: Pair, provider: Provider
) -> None:
    provider.script = Script(["a", "b"], stall=1)
    run = start(pair.one, "again", chain="again")
    with follow(pair.two, run) as stream:
        seen = read(stream, 3)
        old = worker(pair.one)
        os.kill(old, signal.SIGKILL)
        assert provider.wait_calls(2, 30)
        while (event := stream.next_event()) is not None and event.type != "reset":
            seen.append(event)
        assert event is not None
        assert json.loads(event.data) == {"attempt": 2, "reason": "worker_lost"}
        wait_other_worker(pair.one, old)
        # Either of them may have been first.
        lost = [worker(pair.one), worker(pair.two)]
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
    for server, pid in zip((pair.one, pair.two), lost, strict=True):
        wait_other_worker(server, pid)
    with follow(pair.two, run) as stream:
        events = list(stream.events())
    assert code_of(events) == "worker_lost"
    assert [event.type for event in events].count("reset") == 1
    assert len(provider.calls) == 2


def test_a_graph_whose_worker_is_killed_goes_on_after_its_last_finished_node(
    pair: Pair, provider: Provider
) -> None:
    provider.scripts["first"] = Script(["one"])
    provider.scripts["second"] = Script(["t", "w", "o"], stall=1)
    run = start(pair.one, "go", chain="steps")
    with follow(pair.two, run) as stream:
        seen = read(stream, 1)
        while '"content":"t"' not in seen[-1].data:
            seen += read(stream, 1)
        os.kill(worker(pair.one), signal.SIGKILL)
        provider.scripts["second"] = Script(["t", "w", "o"])
        events = seen + list(stream.events())
    assert end_of(events) == {"status": "done", "finish_reason": "stop", "error": None}
    asked = [call.question for call in provider.calls]
    assert asked == ["first", "second", "second"]
    said: dict[str, str] = {}
    for event in events:
        data = json.loads(event.data)
        if event.type == "message":
            said[data["message"]] = said.get(data["message"], "") + data["content"]
    # What was said of a step that was not finished stays said; then that step is done anew.
    assert list(said.values()) == ["one", "t", "two"]


# Readers


def test_every_place_can_be_read_from_every_worker(pair: Pair, provider: Provider) -> None:
    provider.script = Script(list("every place"))
    run = start(pair.one, "places")
    with follow(pair.one, run) as stream:
        events = list(stream.events())
    assert end_of(events)["status"] == "done"
    for server in (pair.one, pair.two):
        for after in range(len(events)):
            with follow(server, run, after) as stream:
                assert list(stream.events()) == events[after:]
        with follow(server, run, len(events)) as stream:
            assert stream.status == 204


def test_two_hundred_reconnects_lose_nothing_and_double_nothing(pair: Pair) -> None:
    numbers = 3000
    run = start(pair.one, f"{numbers} 0.001", chain="count")
    seeded = random.Random(7)
    events: list[ServerSentEvent] = []
    reconnects = 0
    over = False
    while not over:
        server = seeded.choice((pair.one, pair.two))
        with follow(server, run, len(events)) as stream:
            if stream.status == 204:
                break
            few = reconnects < 200
            wanted = seeded.randrange(1, 15) if few else numbers * 2
            for _ in range(wanted):
                event = stream.next_event()
                if event is None or event.type == "end":
                    over = True
                    events += [event] if event else []
                    break
                events.append(event)
            if not over:
                reconnects += 1
                # As often as not what was already on its way is thrown away with the connection.
                (stream.reset if seeded.random() < 0.5 else stream.close)()
    assert reconnects >= 200
    assert end_of(events)["status"] == "done"
    assert text(events) == "".join(f"{number} " for number in range(numbers))


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{worker(server)}/fd"))


def gauges(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = request("GET", f"{server.url}/health/ready").json()
    return found


def test_readers_that_go_leave_nothing_behind(pair: Pair, provider: Provider) -> None:
    provider.script = Script(["a"], stall=0)
    run = start(pair.one, "silent")
    for server in (pair.one, pair.two):
        before, opened = gauges(server), descriptors(server)
        streams = [follow(server, run) for _ in range(200)]
        for stream in streams:
            stream.next_event()
        assert gauges(server)["open_streams"] == before["open_streams"] + 200
        for number, stream in enumerate(streams):
            (stream.reset if number % 2 else stream.close)()
        until = time.monotonic() + 20
        while time.monotonic() < until and (
            gauges(server) != before or descriptors(server) > opened + 2
        ):
            time.sleep(0.1)
        assert gauges(server) == before
        assert descriptors(server) <= opened + 2  # the asking itself may hold one
    assert gauges(pair.one)["live_runs"] == 1
    request("POST", f"{pair.two.url}/runs/{run}/cancel")


def test_a_client_that_never_reads_is_let_go(pair: Pair) -> None:
    run = start(pair.one, "30000", chain="count")
    before = gauges(pair.one)["open_streams"]
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = pair.one.url.removeprefix("http://").partition(":")
        client.connect((host, int(port)))
        client.sendall(f"GET /runs/{run}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with follow(pair.one, run) as stream:
            assert end_of(list(stream.events()))["status"] == "done"
        until = time.monotonic() + 20
        while time.monotonic() < until and gauges(pair.one)["open_streams"] > before:
            time.sleep(0.1)
        assert gauges(pair.one)["open_streams"] == before


def test_fast_chains_advance_together(pair: Pair) -> None:
    runs = [start(pair.one, "60000", chain="count") for _ in range(5)]
    while True:
        states = [status(pair.one, run) for run in runs]
        if any(state["status"] != "running" for state in states):
            break
    # When the first of them is at its end, no other is still at its beginning.
    assert min(state["seq"] for state in states) > 2000
    for run in runs:
        assert request("POST", f"{pair.one.url}/runs/{run}/cancel").status == 200


# Stop


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("tokens", [0, 1])
def test_stop_reaches_the_model(pair: Pair, provider: Provider, where: str, tokens: int) -> None:
    provider.script = Script(["a", "b"], stall=tokens)
    run = start(pair.one, "stop")
    assert provider.wait_calls(1)
    assert provider.calls[0].wait_sent(tokens)
    server = pair.one if where == "here" else pair.two
    answers: list[str] = []

    def cancel() -> None:
        answers.append(request("POST", f"{server.url}/runs/{run}/cancel").json()["status"])

    twice = [threading.Thread(target=cancel) for _ in range(2)]
    for thread in twice:
        thread.start()
    for thread in twice:
        thread.join()
    assert answers == ["cancelled", "cancelled"]
    # It answered because the model had stopped, not before.
    assert provider.calls[0].wait_closed(1)
    for other in (pair.one, pair.two):
        with follow(other, run) as stream:
            events = list(stream.events())
        assert end_of(events) == {"status": "cancelled", "finish_reason": None, "error": None}
        assert text(events) == "a"[:tokens]
    cancel()
    assert answers[-1] == "cancelled"


# The store


def test_a_store_that_is_away_for_a_while_loses_nothing(patient: Pair) -> None:
    """SIGSTOP of Valkey for 3 s, a lock on the SQLite file for 5 s: the run only waits."""
    pair = patient
    run = start(pair.one, "600 0.005", chain="count")
    with follow(pair.two, run) as stream:
        events = read(stream, 20)
        if pair.valkey:
            pair.valkey.pause()
            time.sleep(3)
            pair.valkey.resume()
        else:
            lock = sqlite3.connect(pair.file, isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
            time.sleep(5)
            lock.execute("ROLLBACK")
            lock.close()
        events += stream.events()
    assert end_of(events)["status"] == "done"
    assert text(events) == "".join(f"{number} " for number in range(600))


@pytest.mark.parametrize("patient", ["redis"], indirect=True)
def test_a_restarted_valkey_keeps_what_was_seen(patient: Pair) -> None:
    pair = patient
    assert pair.valkey is not None
    run = start(pair.one, "400 0.005", chain="count")
    with follow(pair.one, run) as stream:
        seen = read(stream, 30)
        pair.valkey.restart()
        rest = list(stream.events())
    events = seen + rest
    if not events[-1].id.endswith(f":{len(events)}"):
        # The end could not be stored in time: it was told without a place.
        assert json.loads(events[-1].data)["error"]["code"] == "store_error"
        events.pop()
    assert [place(event) for event in events] == list(range(1, len(events) + 1))
    with follow(pair.two, run) as stream:
        again = list(stream.events())
    assert end_of(again)
    assert again[: len(seen)] == seen
