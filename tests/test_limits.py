"""How much one may have: starts, live runs, open streams, tokens; and what is told to the rest."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_stream import ConfigError, FlaskStream
from flask_stream.service import Service

from .people import LISTEN, NOBODY, Sent, Site, bearer, refused, token, users
from .people import settings as known
from .provider import Provider, Script
from .sse import Response, Stream, request
from .test_local import wait_for
from .valkey import Valkey

KEY = "fsk_the-key-of-the-blog"
BLOG = f"blog:{hashlib.sha256(KEY.encode()).hexdigest()}"
#: What the model says that has not come to its end.
SILENT = Script(["a", "b"], stall=1)


@pytest.fixture(params=["sqlite", "valkey"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that two workers share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/runs.db"
        return
    with Valkey() as valkey:
        yield valkey.url


def too_many(answer: Response, most: int = 10) -> int:
    """Check that it is a 429; the seconds after which to come again."""
    refused(answer, 429)
    wait = int(answer.headers["Retry-After"])
    assert 1 <= wait <= most
    return wait


def open_streams(site: Site) -> int:
    return int(request("GET", f"{site.url}/health/ready").json()["open_streams"])


def live_runs(site: Site) -> int:
    return int(request("GET", f"{site.url}/health/ready").json()["live_runs"])


def opened(stream: Stream) -> Stream:
    """A stream that is there: its first event has come."""
    assert stream.status == 200, stream.read()
    assert stream.next_event()
    return stream


def together(count: int, call: Callable[[int], Response]) -> list[Response]:
    """That many calls at the same moment."""
    answers: list[Response] = []
    threads = [
        threading.Thread(target=lambda n: answers.append(call(n)), args=(n,)) for n in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def by_both(call: Callable[[int], Response]) -> list[Response]:
    """Thirty calls at the same moment, and more until each of two workers has answered some."""
    answers = together(30, call)
    # Which worker takes a connection is the kernel's to say.
    while len({answer.headers["X-Worker"] for answer in answers}) < 2 and len(answers) < 600:
        answers += together(30, call)
    assert len({answer.headers["X-Worker"] for answer in answers}) == 2
    return answers


# Starts


def test_starts_per_principal(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, start_limit="2 per 3 second", api_keys=BLOG) as server:
        site = Site(server)
        alice, bob = site.person("alice"), site.person("bob")
        run = site.start("one", alice)
        with site.listen("two", alice) as stream:
            assert stream.status == 200
        # Neither a whole second after the first, nor nearly so.
        time.sleep(0.6)
        wait = too_many(site.ask("three", alice), most=3)
        ready = time.monotonic() + wait
        for path, body in (("/stream_chat?question=q", None), ("/stream_chat", {"question": "q"})):
            method = "POST" if body else "GET"
            too_many(request(method, site.url + path, json=body, headers={**LISTEN, **alice}))
        # A ticket is no way around it.
        made = request("POST", f"{site.url}/tickets", json={"chain": "chat"}, headers=alice).json()
        too_many(request("GET", f"{site.url}{made['urls']['stream']}&question=q", headers=LISTEN))
        # What is there is not counted, and not refused.
        for _ in range(5):
            assert site.ask("one", alice, run=run).status == 200
            assert site.status(run, alice).status == 200
        assert site.ask("one", bob).status == 201
        assert site.ask("one", bearer(KEY)).status == 201
        # Anyone is limited by address alone.
        assert [site.ask("q").status for _ in range(3)] == [201] * 3
        assert provider.wait_calls(7)
        assert len(provider.calls) == 7
        time.sleep(max(0.0, ready - time.monotonic()))
        assert site.ask("three", alice).status == 201


def test_starts_per_address(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, address_limit="3 per 2 second", proxies=1) as server:
        site = Site(server)

        def at(address: str, who: Sent = NOBODY) -> Response:
            return site.ask("q", {**who, "X-Forwarded-For": address})

        alice, bob = site.person("alice"), site.person("bob")
        assert [at("192.0.2.1", who).status for who in (alice, bob, NOBODY)] == [201] * 3
        for who in (alice, bob, NOBODY):
            too_many(at("192.0.2.1", who), most=2)
        # What somebody says who stands before the proxy is not believed.
        too_many(at("198.51.100.1, 192.0.2.1"), most=2)
        too_many(at("198.51.100.2, 198.51.100.3,192.0.2.1"), most=2)
        assert at("192.0.2.1, 192.0.2.2").status == 201
        # An IPv6 subscriber has a whole /64; an IPv4 one may be written as IPv6.
        assert [at(f"2001:db8:1:2::{n}").status for n in (1, 2, 3)] == [201] * 3
        too_many(at("2001:db8:1:2:ffff::1"), most=2)
        assert at("2001:db8:1:3::1").status == 201
        assert at("::ffff:198.51.100.7").status == 201
        assert [at("198.51.100.7").status for _ in range(2)] == [201] * 2
        too_many(at("::ffff:198.51.100.7"), most=2)
        assert at("::ffff:198.51.100.8").status == 201
        assert provider.wait_calls(12)
        assert len(provider.calls) == 12
        wait_for(lambda: at("192.0.2.1").status == 201)


def test_who_asks_too_often_takes_nothing_from_their_neighbours(
    provider: Provider, tmp_path: Path
) -> None:
    limits = {"start_limit": "2/minute", "address_limit": "5/minute"}
    with users(provider, tmp_path, **limits) as server:
        site = Site(server)
        alice, bob = site.person("alice"), site.person("bob")
        assert [site.ask("q", alice).status for _ in range(10)] == [201] * 2 + [429] * 8
        assert [site.ask("q", bob).status for _ in range(2)] == [201] * 2
        assert site.ask("q").status == 201
        too_many(site.ask("q"), most=60)


def test_several_limits_at_once(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, start_limit="2/second; 3/minute") as server:
        site = Site(server)
        alice = site.person("alice")
        assert [site.ask("q", alice).status for _ in range(2)] == [201] * 2
        wait_for(lambda: site.ask("q", alice).status == 201)
        wait = too_many(site.ask("q", alice), most=60)
        assert wait > 30


def test_without_being_told_nobody_believes_a_proxy(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, address_limit="2/minute") as server:
        site = Site(server)
        spoofed = [{"X-Forwarded-For": f"192.0.2.{n}"} for n in range(4)]
        assert [site.ask("q", who).status for who in spoofed] == [201, 201, 429, 429]
        for name in ("Forwarded", "X-Real-IP", "Client-IP", "True-Client-IP"):
            assert site.ask("q", {name: "for=192.0.2.9"}).status == 429
        told = [line for line in server.log.splitlines() if "STREAM_PROXIES" in line]
        assert len(told) == 1
    assert provider.wait_calls(2)


@pytest.mark.parametrize(("hops", "seen"), [(1, "4"), (2, "3"), (3, "2")])
def test_as_many_proxies_are_believed_as_there_are(
    provider: Provider, tmp_path: Path, hops: int, seen: str
) -> None:
    with users(provider, tmp_path, address_limit="1/minute", proxies=hops) as server:
        site = Site(server)

        def at(*last: str) -> int:
            chain = ", ".join(f"192.0.2.{n}" for n in last)
            return site.ask("q", {"X-Forwarded-For": chain}).status

        assert at("1", "2", "3", "4") == 201
        # The same client, whatever it says before what the proxies say.
        assert at("9", "2", "3", "4") == 429
        assert at("9", "9", "9", "2", "3", "4") == 429
        # Another client.
        assert at("1", *("8" if n == seen else n for n in ("2", "3", "4"))) == 201


def test_starts_are_counted_by_all_workers_where_valkey_is(
    provider: Provider, tmp_path: Path
) -> None:
    with Valkey() as valkey, ExitStack() as stack:
        limits: dict[str, object] = {"start_limit": "5/minute", "address_limit": "12/minute"}
        settings = limits | {"store": valkey.url, "WEB_CONCURRENCY": 2}
        server = stack.enter_context(users(provider, tmp_path, **settings))
        site = Site(server)
        alice = site.person("alice")
        answers = by_both(lambda n: site.ask(f"{n}", alice))
        refusals = len(answers) - 5
        assert sorted(answer.status for answer in answers) == [201] * 5 + [429] * refusals
        answers = together(20, lambda n: site.ask(f"{n}"))
        more = [answer.status for answer in answers].count(201)
        assert more <= 7
        assert provider.wait_calls(5 + more)
        # What cannot be counted is not started.
        calls = len(provider.calls)
        valkey.halt()
        refused(site.ask("q", site.person("bob")), 503)
        assert len(provider.calls) == calls


# What is wrong with a setting


def app_of(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.update({"STREAM_STORE": "memory://", "SECRET_KEY": "a key for tests"})
    app.config.update({name.upper(): value for name, value in config.items()})
    return app


@pytest.mark.parametrize("name", ["STREAM_START_LIMIT", "STREAM_ADDRESS_LIMIT"])
@pytest.mark.parametrize("text", ["many", "30", "30/", "30/fortnight", "-1/minute", "30/minute;x"])
def test_a_limit_that_is_none_is_told_at_start(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        FlaskStream(app_of(**{name: text}))


@pytest.mark.parametrize("missing", ["limits"])
@pytest.mark.parametrize("name", ["STREAM_START_LIMIT", "STREAM_ADDRESS_LIMIT"])
def test_limits_need_an_extra(monkeypatch: pytest.MonkeyPatch, missing: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{name}.*flask-llm-stream\[limits\]"):
        FlaskStream(app_of(**{name: "30/minute"}))
    app = app_of(**{name: ""})
    FlaskStream(app)
    close(app)


@pytest.mark.parametrize(
    "theirs",
    [
        {"RATELIMIT_DEFAULT": "1/day"},
        {"RATELIMIT_APPLICATION": "1/day"},
        {"RATELIMIT_ENABLED": False},
        {"RATELIMIT_HEADERS_ENABLED": True},
        {"RATELIMIT_STORAGE_URI": "redis://127.0.0.1:1"},
        {"RATELIMIT_META": "1/day"},
    ],
    ids=str,
)
def test_an_app_s_own_limits_are_its_own(
    theirs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(STREAM_START_LIMIT="2/minute", STREAM_ADDRESS_LIMIT="3/minute", **theirs)
    stream = FlaskStream(app)
    stream.add("count", lambda question: iter(["1"]))
    app.add_url_rule("/mine", view_func=lambda: "mine")
    client = app.test_client()

    def ask() -> TestResponse:
        return client.post("/runs", json={"chain": "count", "input": "q"})

    try:
        assert [client.get("/mine").status_code for _ in range(5)] == [200] * 5
        assert not [name for name in client.get("/mine").headers if "RateLimit" in name]
        assert [ask().status_code for _ in range(4)] == [201] * 3 + [429]
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
    finally:
        close(app)


def close(app: Flask) -> None:
    service: Service = app.extensions["flask_stream"]
    service.close()


# Live runs


def test_live_runs_per_principal(provider: Provider, tmp_path: Path, shared: str) -> None:
    settings: dict[str, object] = {"store": shared, "max_runs": 3, "WEB_CONCURRENCY": 2}
    with users(provider, tmp_path, **settings) as server:
        site = Site(server)
        alice, bob = site.person("alice"), site.person("bob")
        provider.script = SILENT
        answers = by_both(lambda n: site.ask(f"{n}", alice))
        started = [answer for answer in answers if answer.status == 201]
        assert len(started) == 3
        for answer in answers:
            if answer.status != 201:
                too_many(answer)
        with site.listen("one more", alice) as stream:
            assert stream.status == 429
        # What is there may be asked for again, by whoever has it.
        runs = [answer.json() for answer in started]
        for run in runs:
            assert site.status(run["run"], alice).json()["status"] == "running"
        assert site.ask("bob's", bob).status == 201
        assert site.ask("anyone's").status == 201
        assert provider.wait_calls(5)
        assert len(provider.calls) == 5
        # A place is free as soon as a run has ended, in whatever way.
        stopped = request("POST", site.url + runs[0]["urls"]["cancel"], headers=alice)
        assert stopped.json()["status"] == "cancelled"
        assert site.ask("instead", alice).status == 201
        too_many(site.ask("one more", alice))
        provider.release()
        wait_for(lambda: site.status(runs[1]["run"], alice).json()["status"] == "done")
        assert site.ask("instead", alice).status == 201


def test_the_same_run_again_is_never_refused(
    provider: Provider, tmp_path: Path, shared: str
) -> None:
    limits: dict[str, object] = {"start_limit": "1/minute", "max_runs": 1, "daily_tokens": 1}
    with users(provider, tmp_path, store=shared, WEB_CONCURRENCY=2, **limits) as server:
        site = Site(server)
        alice = site.person("alice")
        provider.script = SILENT
        run = "the-same-run-0123456789"
        answers = together(20, lambda _: site.ask("q", alice, run=run))
        assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
        with site.listen("q", alice, run=run) as stream:
            opened(stream)
            assert site.ask("another", alice).status == 429
            provider.release()
            stream.read()
        assert site.ask("q", alice, run=run).status == 200
        assert len(provider.calls) == 1


def test_live_runs_of_nobody_in_particular(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, max_runs_per_address=2, proxies=1) as server:
        site = Site(server)
        provider.script = SILENT
        here, there = ({"X-Forwarded-For": f"192.0.2.{n}"} for n in (1, 2))
        assert [site.ask("q", here).status for _ in range(3)] == [201, 201, 429]
        assert [site.ask("q", there).status for _ in range(3)] == [201, 201, 429]
        assert site.ask("q", {**here, **site.person("alice")}).status == 201
        assert provider.wait_calls(5)
        assert len(provider.calls) == 5


def test_a_dead_worker_s_runs_take_no_place(
    provider: Provider, tmp_path: Path, shared: str
) -> None:
    settings: dict[str, object] = {"store": shared, "max_runs": 2, "lease": 2}
    with users(provider, tmp_path, WEB_CONCURRENCY=2, **settings) as server:
        site = Site(server)
        alice = site.person("alice")
        provider.script = SILENT
        runs = [site.start(f"{n}", alice) for n in range(2)]
        too_many(site.ask("one more", alice))
        old = set(server.workers)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(set(server.workers) - old) >= 2)
        until = time.monotonic() + 15
        while True:
            try:
                if site.ask("again", alice).status == 201:
                    break
            except OSError:  # the new worker is not there yet
                pass
            assert time.monotonic() < until
            time.sleep(0.1)
        wait_for(lambda: {site.status(run, alice).json()["status"] for run in runs} == {"failed"})


# Open streams


def test_open_streams_per_principal(provider: Provider, tmp_path: Path) -> None:
    settings = known("jwt") | {"max_streams": 2}
    with users(provider, tmp_path, **settings) as server, ExitStack() as stack:
        site = Site(server, "jwt")
        alice, bob = site.person("alice"), site.person("bob")
        provider.script = SILENT
        run = site.start("q", alice)
        one, two = (opened(stack.enter_context(site.follow(run, alice))) for _ in range(2))
        assert open_streams(site) == 2
        events = f"{site.url}/runs/{run}/events"
        too_many(request("GET", events, headers=alice))
        # By another token of theirs, too; and nobody pays for an answer that nobody would get.
        too_many(request("GET", events, headers=bearer(token(sub="alice", jti="x"))))
        with site.listen("another", alice) as stream:
            assert stream.status == 429
        body = {"question": "another"}
        too_many(request("POST", f"{site.url}/stream_chat", json=body, headers=alice))
        assert live_runs(site) == 1
        opened(stack.enter_context(site.listen("bob's", bob)))
        # A closed tab, a broken line: their places are free.
        for leave in (one.close, two.reset):
            leave()
            wait_for(lambda: open_streams(site) == 2)
            opened(stack.enter_context(site.follow(run, alice)))
            too_many(request("GET", events, headers=alice))


def test_open_streams_per_address(provider: Provider, tmp_path: Path) -> None:
    with (
        users(provider, tmp_path, max_streams_per_address=2, proxies=1) as server,
        ExitStack() as stack,
    ):
        site = Site(server)
        provider.script = SILENT
        here, there = ({"X-Forwarded-For": f"192.0.2.{n}"} for n in (1, 2))
        run = site.start("q", there)
        for who in (here, {**here, **site.person("alice")}, there, there):
            opened(stack.enter_context(site.follow(run, who)))
        for who in (here, {**here, **site.person("alice")}, there):
            too_many(request("GET", f"{site.url}/runs/{run}/events", headers=who))
        assert open_streams(site) == 4


def test_what_opens_no_stream_takes_no_place(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, max_streams_per_worker=1) as server:
        site = Site(server)
        run = site.finished("q")
        end = {"Last-Event-ID": f"{run}:7"}
        for _ in range(3):
            for method, path, headers, status in (
                ("HEAD", f"/runs/{run}/events", {}, 405),
                ("HEAD", "/stream_chat?question=q", LISTEN, 405),
                ("GET", f"/runs/{run}/events", end, 204),
                ("GET", "/stream_chat?question=q", {**LISTEN, **end}, 204),
                ("GET", f"/runs/{run}/events?format=pdf", {}, 400),
                ("GET", f"/runs/{run}/events?after=1000", {}, 204),
                ("GET", f"/runs/{'0' * 32}/events", {}, 404),
                ("GET", "/stream_chat?question=", LISTEN, 400),
                ("GET", f"/runs/{run}/events", {}, 200),
            ):
                answer = request(method, site.url + path, headers=headers)
                assert answer.status == status, (method, path, answer.body)
        assert open_streams(site) == 0
        # Who is gone before the first byte has left, too.
        for _ in range(20):
            address = ("127.0.0.1", urlsplit(site.url).port or 0)
            with socket.create_connection(address) as gone:
                gone.sendall(f"GET /runs/{run}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: open_streams(site) == 0)
        assert "Traceback" not in server.log


def test_a_worker_keeps_room_for_the_rest(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, "--worker-connections", "50") as server, ExitStack() as stack:
        site = Site(server)
        provider.script = SILENT
        run = site.start("q")
        streams: list[Stream] = []
        while len(streams) < 60:
            stream = stack.enter_context(site.follow(run))
            if stream.status != 200:
                break
            streams.append(opened(stream))
        assert 35 <= len(streams) < 50
        assert stream.status == 503
        assert 1 <= int(stream.headers["Retry-After"]) <= 60
        assert stream.headers["Content-Type"] == "application/problem+json"
        stream.close()
        for _ in range(10):
            for path in ("/health/live", "/health/ready", f"/runs/{run}"):
                assert request("GET", site.url + path, timeout=2).status == 200
            refused(request("GET", f"{site.url}/stream_chat?question=q", headers=LISTEN), 503)
            refused(request("POST", f"{site.url}/stream_chat", json={"question": "q"}), 503)
        assert live_runs(site) == 1, "the model was asked for nobody"
        # Stop works in a full worker; and then there is room again.
        stopped = request("POST", f"{site.url}/runs/{run}/cancel", timeout=5)
        assert stopped.json()["status"] == "cancelled"
        for stream in streams:
            assert list(stream.events())[-1].type == "end"
        wait_for(lambda: open_streams(site) == 0)
        provider.script = Script()
        with site.listen("q") as stream:
            assert list(stream.events())[-1].type == "end"


def test_idle_connections_do_not_keep_health_checks_out(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, max_streams_per_worker=1) as server:
        site = Site(server)
        provider.script = SILENT
        run = site.start("q")
        with site.follow(run) as stream:
            opened(stream)
            refused(request("GET", f"{site.url}/runs/{run}/events"), 503)
            # A connection that has been refused a stream is as good as any other.
            with closing(HTTPConnection(urlsplit(site.url).netloc, timeout=5)) as connection:
                for path, status in (
                    (f"/runs/{run}/events", 503),
                    ("/health/live", 200),
                    (f"/runs/{run}", 200),
                ):
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == status


# Tokens


def test_tokens_per_day(provider: Provider, tmp_path: Path, shared: str) -> None:
    settings: dict[str, object] = {"store": shared, "daily_tokens": 10, "WEB_CONCURRENCY": 2}
    with users(provider, tmp_path, **settings) as server:
        site = Site(server)
        alice = site.person("alice")
        provider.script = Script(list("0123456789"))
        run = site.finished("q", alice)
        wait_for(lambda: site.ask("more", alice).status == 429)
        calls = len(provider.calls)
        left = 86_400 - time.time() % 86_400
        wait = too_many(site.ask("more", alice), most=86_400)
        assert left - 5 <= wait <= left + 5
        with site.listen("more", alice) as stream:
            assert stream.status == 429
        # Everything else is as it was.
        assert site.ask("q", alice, run=run).status == 200
        assert site.status(run, alice).status == 200
        assert site.ask("q", site.person("bob")).status == 201
        assert provider.wait_calls(calls + 1)
        assert len(provider.calls) == calls + 1


def tokens_of(provider: Provider, tmp_path: Path, script: Script, stop: bool) -> int:
    """After how many runs of that script a budget of 100 tokens is used up."""
    with users(provider, tmp_path, daily_tokens=100) as server:
        site = Site(server)
        alice = site.person("alice")
        provider.script = script
        for count in range(12):
            answer = site.ask("q", alice)
            if answer.status == 429:
                return count
            run = answer.json()["run"]
            with site.follow(run, alice) as stream:
                if stop:
                    for _ in range(30):
                        assert stream.next_event()
                    url = f"{site.url}/runs/{run}/cancel"
                    assert request("POST", url, headers=alice).status == 200
                list(stream.events())
            # It is counted when it has ended, and not by then.
            wait_for(lambda: live_runs(site) == 0)
        return count + 1


def test_a_run_that_is_stopped_costs_what_it_has_said(provider: Provider, tmp_path: Path) -> None:
    script = Script(["x"] * 50, stall=40)
    assert 2 <= tokens_of(provider, tmp_path, script, stop=True) <= 4


def test_a_run_that_fails_costs_what_it_has_said(provider: Provider, tmp_path: Path) -> None:
    script = Script(["x"] * 50, fault="rst", after=40)
    assert 2 <= tokens_of(provider, tmp_path, script, stop=False) <= 4


def test_a_model_that_refuses_costs_nothing(provider: Provider, tmp_path: Path) -> None:
    assert tokens_of(provider, tmp_path, Script(status=500), stop=False) == 12
