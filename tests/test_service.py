"""The service as people start it: with nothing set, on threads, set wrongly; and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .provider import Provider, Script
from .server import ROOT, Server, environment, gunicorn
from .sse import ServerSentEvent, Stream, request
from .test_local import alive, processes, supervisors, wait_for

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(300),
]


def ask(server: Server, question: str) -> Stream:
    return Stream(
        f"{server.url}/stream_chat",
        method="POST",
        headers={"Content-Type": "application/json"},
        body=json.dumps({"question": question}).encode(),
        timeout=60,
    )


def follow(server: Server, run: str, after: str = "") -> Stream:
    headers = {"Last-Event-ID": after} if after else {}
    return Stream(f"{server.url}/runs/{run}/events", headers=headers)


def first(stream: Stream, count: int) -> list[ServerSentEvent]:
    """The next events, so many."""
    events = [stream.next_event() for _ in range(count)]
    found = [event for event in events if event is not None]
    assert len(found) == count
    return found


def data(event: ServerSentEvent) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(event.data)
    return value


def run_of(events: list[ServerSentEvent]) -> str:
    run: str = data(events[0])["run"]
    return run


def text(events: list[ServerSentEvent]) -> str:
    return "".join(data(event).get("content", "") for event in events)


def status(server: Server, run: str) -> str:
    return str(request("GET", f"{server.url}/runs/{run}").json()["status"])


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


# With nothing set: gunicorn, and the embedded model


@pytest.fixture
def embedded(store: str) -> Iterator[Server]:
    """`gunicorn wsgi:app`, which nobody has told of a model."""
    with Server(gunicorn(), environment(store=store, max_tokens=16), wait=240) as server:
        yield server


def check_answer(server: Server) -> str:
    """The embedded model answers a question; the run."""
    with ask(server, "What is the capital of Japan?") as stream:
        events = list(stream.events())
    types = [event.type for event in events]
    assert types[:2] == ["start", "message_start"]
    assert types[-2:] == ["usage", "end"]
    assert text(events).strip()
    usage, end = (data(event) for event in events[-2:])
    assert usage["model"] == "smollm2"
    assert 1 <= usage["output_tokens"] <= 16
    assert end == {"status": "done", "finish_reason": "stop", "error": None}
    return run_of(events)


def test_with_nothing_set_the_embedded_model_answers(embedded: Server) -> None:
    check_answer(embedded)
    model, workers = processes(embedded.process.pid), embedded.workers
    assert embedded.stop() == 0
    assert not any(alive(pid) for pid in (*model, *workers))
    assert "Traceback" not in embedded.log


def test_the_embedded_model_stays_when_workers_go(embedded: Server) -> None:
    master = embedded.process.pid
    model = processes(master)
    runs = [check_answer(embedded)]

    def replaced(*, how: signal.Signals, whom: int) -> None:
        old = set(embedded.workers)
        os.kill(whom, how)
        wait_for(lambda: not any(alive(pid) for pid in old))
        wait_for(lambda: any(alive(pid) for pid in set(embedded.workers) - old))
        runs.append(check_answer(embedded))
        assert processes(master) == model

    replaced(how=signal.SIGKILL, whom=embedded.workers[-1])
    replaced(how=signal.SIGHUP, whom=master)
    assert [status(embedded, run) for run in runs] == ["done", "done", "done"]

    assert embedded.stop() == 0
    assert not any(alive(pid) for pid in (*model, *embedded.workers))


# On plain threads: `flask run`


def scripted(provider: Provider, store: str, **settings: object) -> dict[str, str]:
    """An environment in which the provider is the model."""
    return environment(
        store=store,
        model="openai:scripted",
        model_retries=0,
        OPENAI_BASE_URL=provider.url,
        OPENAI_API_KEY="test",
        **settings,
    )


@pytest.fixture
def threads(provider: Provider, store: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "run", "--port", "0"]
    server = Server(command, scripted(provider, store))
    try:
        yield server
    finally:
        provider.release()
        server.stop(signal.SIGINT)


def test_on_threads_a_run_goes_on_without_its_reader(threads: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c", "d"], gated=True)
    with ask(threads, "letters") as stream:
        provider.allow(2)
        events = first(stream, 4)
        stream.reset()
    provider.allow(2)
    with follow(threads, run_of(events), events[-1].id) as stream:
        rest = list(stream.events())
        assert stream.ended == "clean"
    assert text(events + rest) == "abcd"
    assert [event.type for event in rest] == ["message", "message", "usage", "end"]
    with follow(threads, run_of(events), rest[-1].id) as stream:
        assert stream.status == 204
    assert len(provider.calls) == 1
    assert "Traceback" not in threads.log


def test_on_threads_a_stop_ends_a_silent_run(threads: Server, provider: Provider) -> None:
    provider.script = Script(["one", "two"], stall=1)
    with ask(threads, "silence") as stream:
        events = first(stream, 3)
        run = run_of(events)
        stopped = request("POST", f"{threads.url}/runs/{run}/cancel", timeout=30)
        assert (stopped.status, stopped.json()["status"]) == (200, "cancelled")
        events += stream.events()
    assert text(events) == "one"
    assert data(events[-1]) == {"status": "cancelled", "finish_reason": None, "error": None}
    # What the model says after all is no longer written.
    provider.release()
    with follow(threads, run) as stream:
        assert list(stream.events()) == events
    assert status(threads, run) == "cancelled"


# A wrong setting


def test_a_wrong_setting_is_told_before_anything_starts(store: str) -> None:
    done = subprocess.run(
        gunicorn(),
        env=environment(store=store, heartbeat="soon"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "STREAM_HEARTBEAT is 'soon', but must be a number" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Booting worker" not in done.stdout


# An app of one's own

OWN = """
from flask import Flask
from flask_stream import FlaskStream

app = Flask(__name__)
stream = FlaskStream(app)
stream.add("shout", lambda question: iter([question.upper()]))
"""


def test_an_app_of_ones_own_needs_none_of_our_models(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(OWN)
    deployment = (ROOT / "docs" / "deployment.md").read_text()
    (conf,) = re.findall(r"```python\n(from gevent.*?)```", deployment, re.S)
    (tmp_path / "gunicorn.conf.py").write_text(conf)
    # The service would not start with these.
    env = environment(
        model="anthropic:claude", model_folder=tmp_path / "cache", ANTHROPIC_API_KEY=""
    )
    with Server(gunicorn(app="app:app"), env, cwd=tmp_path) as server:
        body = json.dumps({"question": "hello"}).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/stream_shout?format=text"
        with Stream(url, method="POST", headers=headers, body=body) as stream:
            assert next(event.data for event in stream.events()) == "HELLO"
        assert not list(supervisors(server.process.pid))
    assert not (tmp_path / "cache").exists()


# The end


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_told_to_go_it_sends_readers_away_and_lets_runs_end(
    provider: Provider, store: str, kind: str
) -> None:
    provider.script = Script(["a", "b", "c", "d"], gated=True)
    env = scripted(provider, "memory://" if kind == "memory" else store)
    with Server(gunicorn(), env) as server:
        with ask(server, "letters") as stream:
            provider.allow(2)
            events = first(stream, 4)
            server.process.send_signal(signal.SIGTERM)
            (last,) = stream.events()
            assert stream.ended == "clean"
        assert (last.type, last.id) == ("reconnect", events[-1].id)
        after = json.loads(last.data)["after"]
        assert last.retry == int(after * 1000)
        assert text(events) == "ab"

        (call,) = provider.calls
        # Longer than a worker stays that has nothing left but a run.
        assert not call.wait_closed(3)
        for count in (3, 4):
            provider.allow()
            assert call.wait_sent(count)
        assert server.stop() == 0
        assert call.finished
        assert call.closed_at is None
        assert f"run {run_of(events)}: done" in server.log
        assert "Traceback" not in server.log
        assert not any(alive(pid) for pid in server.workers)
