"""Who asks: sessions, tokens and an app's own people; and what is not there for anybody else."""

from __future__ import annotations

import json
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jwt
import pytest
from flask import Flask

from flask_stream import ConfigError, FlaskStream
from flask_stream.service import Service

from . import people
from .people import LISTEN, NOBODY, NOWHERE, Sent, Site, bearer, refused, sealed, token, users
from .provider import Provider, Script
from .server import USUAL, Server
from .sse import Response, ServerSentEvent, Stream, request
from .valkey import Valkey

WAYS = ("session", "jwt", "own")
STORES = ("memory", "sqlite", "valkey")
RECHECK = 1.0


@pytest.fixture(
    scope="module",
    params=[(way, store) for way in WAYS for store in STORES],
    ids=lambda param: "-".join(param),
)
def site(
    request: pytest.FixtureRequest, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The service, for each way to know people and each store: two workers where it can have."""
    way, store = request.param
    folder = tmp_path_factory.mktemp("users")
    with ExitStack() as stack:
        url = "memory://"
        if store == "sqlite":
            url = f"sqlite:///{folder}/runs.db"
        elif store == "valkey":
            url = stack.enter_context(Valkey()).url
        settings = people.settings(way) | {"store": url, "recheck": RECHECK}
        settings["WEB_CONCURRENCY"] = 1 if store == "memory" else 2
        yield Site(stack.enter_context(users(_provider, folder, **settings)), way)


@pytest.fixture(scope="module")
def plain(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker, sessions, nothing set."""
    with users(_provider, tmp_path_factory.mktemp("plain")) as server:
        yield Site(server)


@pytest.fixture(scope="module")
def tokens(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker, tokens that are signed with RS256."""
    settings = people.settings("jwt") | {"recheck": RECHECK}
    with users(_provider, tmp_path_factory.mktemp("tokens"), **settings) as server:
        yield Site(server, "jwt")


def last(stream: Stream, timeout: float = 10) -> ServerSentEvent:
    """The last event of a stream that ends as it should."""
    event = list(stream.events(timeout))[-1]
    assert stream.ended == "clean"
    return event


# Somebody else's run


class Verb(NamedTuple):
    """What can be asked about a run: `{run}` stands for its id."""

    method: str
    path: str
    headers: Sent = NOBODY
    body: dict[str, Any] | None = None


#: What does not tell a run that is somebody else's from one that does not exist.
READS = [
    Verb("GET", "/runs/{run}"),
    Verb("HEAD", "/runs/{run}"),
    Verb("GET", "/runs/{run}/events"),
    Verb("GET", "/runs/{run}/events?after=1"),
    Verb("GET", "/runs/{run}/events?after={run}:1000000"),
    Verb("GET", "/runs/{run}/events?format=text"),
    Verb("GET", "/runs/{run}/events", {"Last-Event-ID": "{run}:2"}),
    Verb("POST", "/runs/{run}/cancel"),
    Verb("GET", "/stream_open?question=mine", {**LISTEN, "Last-Event-ID": "{run}:1"}),
    Verb("GET", "/stream_chat?question=mine", {**LISTEN, "Last-Event-ID": "{run}:1"}),
    Verb("GET", "/stream_open?question=mine&after={run}:1", LISTEN),
    Verb("POST", "/stream_open", {"Last-Event-ID": "{run}:1"}, {"question": "mine"}),
    Verb("POST", "/stream_open?after={run}:1", {}, {"question": "mine"}),
    Verb("POST", "/runs", {}, {"chain": "open", "input": "q", "parent": "{run}"}),
    Verb("GET", "/stream_open?question=q&parent={run}", LISTEN),
    Verb("POST", "/stream_open", {}, {"question": "q", "parent": "{run}"}),
]
#: What starts a run where there is none: there is no such answer to compare with.
STARTS = [
    Verb("POST", "/runs", {}, {"chain": "open", "input": "mine", "run": "{run}"}),
    Verb("POST", "/runs", {}, {"chain": "open", "input": "not mine", "run": "{run}"}),
    Verb("GET", "/stream_open?question=mine&run={run}", LISTEN),
    Verb("GET", "/stream_open?question=not+mine&run={run}", LISTEN),
    Verb("POST", "/stream_open", {}, {"question": "mine", "run": "{run}"}),
    Verb("POST", "/stream_open", {}, {"question": "not mine", "run": "{run}"}),
]
#: For people only.
TICKETS = [Verb("POST", "/tickets", {}, {"chain": "open", "parent": "{run}"})]


def of(site: Site, verb: Verb, run: str, who: Sent) -> Response:
    """The answer to a verb on a run."""
    said = json.loads(json.dumps([dict(verb.headers), verb.body]).replace("{run}", run))
    headers, body = said[0] | dict(who), said[1]
    url = site.url + verb.path.replace("{run}", run)
    return request(verb.method, url, json=body, headers=headers)


def seen(answer: Response, run: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but when and by which worker it was given; the id is struck out."""
    headers = [(k, v) for k, v in answer.headers.items() if k not in ("Date", "X-Worker")]
    return answer.status, headers, answer.body.replace(run.encode(), b"<run>")


@pytest.mark.parametrize("live", [True, False], ids=["live", "done"])
def test_what_is_somebody_elses_is_not_there(site: Site, provider: Provider, live: bool) -> None:
    alice, bob = site.person("alice"), site.person("bob")
    provider.script = Script(["mine", "!"], gated=live)
    run = site.start("mine", alice, chain="open")
    with site.follow(run, alice) as stream:
        # Until it is at the model, or over.
        assert provider.wait_calls(1)
        events = [] if live else list(stream.events())
        for who, verbs in ((bob, READS + TICKETS), (NOBODY, READS)):
            for verb in verbs:
                answer = of(site, verb, run, who)
                assert answer.status == 404, (verb, answer.body)
                assert seen(answer, run) == seen(of(site, verb, NOWHERE, who), NOWHERE), verb
        there_is_none = seen(of(site, READS[0], NOWHERE, bob), NOWHERE)
        for who in (bob, NOBODY):
            for verb in STARTS:
                assert seen(of(site, verb, run, who), run) == there_is_none, verb
        # It is there for Alice, as it was.
        assert site.status(run, alice).json()["status"] == ("running" if live else "done")
        if live:
            provider.allow(2)
            events = list(stream.events())
    assert [event.type for event in events] == [
        "start",
        "message_start",
        *["message"] * 2,
        "usage",
        "end",
    ]
    assert len(provider.calls) == 1


def test_somebody_elses_conversation_is_not_there(site: Site, provider: Provider) -> None:
    alice, bob = site.person("alice"), site.person("bob")
    run = site.finished("mine", alice)
    conversation = site.status(run, alice).json()["conversation"]
    verbs = [
        Verb("GET", "/conversations/{run}"),
        Verb("PATCH", "/conversations/{run}", {}, {"title": "planted"}),
        Verb("DELETE", "/conversations/{run}"),
    ]
    for who in (bob, NOBODY):
        for verb in verbs:
            answer = of(site, verb, conversation, who)
            assert answer.status == 404, (verb, answer.body)
            assert seen(answer, conversation) == seen(of(site, verb, NOWHERE, who), NOWHERE), verb
        listed = request("GET", f"{site.url}/conversations", headers=dict(who))
        assert conversation.encode() not in listed.body
    # One of the same id is another one.
    provider.script = Script(["hers, and not seen by the model"])
    asked = site.ask("mine, too", bob, conversation=conversation, chain="open")
    assert asked.status == 201
    assert provider.wait_calls(2)
    assert [m["content"] for m in provider.calls[1].json["messages"]] == ["mine, too"]
    there = request("GET", f"{site.url}/conversations/{conversation}", headers=alice).json()
    assert (there["title"], [its["run"] for its in there["runs"]]) == ("mine", [run])


def test_a_run_is_its_owners_on_every_worker(site: Site, provider: Provider) -> None:
    alice = site.person("alice")
    run = site.finished("mine", alice)
    for verb in READS[:8]:
        # One that was read to its end may well be 204; the place may be one that is not there.
        assert of(site, verb, run, alice).status in (200, 204, 400), verb
    follow_up = site.ask("and then?", alice, parent=run)
    assert follow_up.status == 201
    again = site.ask("mine", alice, run=run)
    assert (again.status, again.json()["run"]) == (200, run)
    refused(site.ask("something else", alice, run=run), 409, "run")
    assert provider.wait_calls(2)
    assert len(provider.calls) == 2


def test_what_is_anyones_is_everybodys_who_has_its_id(site: Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    with site.listen("anyone's", chain="open") as stream:
        for _ in range(3):
            assert stream.next_event()
        run = stream.parser.last_event_id.partition(":")[0]
    assert len(run) == 32
    bob = site.person("bob")
    for who in (NOBODY, bob):
        assert site.status(run, who).status == 200
    # A reconnect is the whole request again, and where it was.
    for who in (NOBODY, bob):
        with site.listen("anyone's", {**who, "Last-Event-ID": f"{run}:2"}, chain="open") as stream:
            event = stream.next_event()
            assert event is not None
            assert event.id == f"{run}:3"
    answer = of(site, Verb("POST", "/runs/{run}/cancel"), run, bob)
    assert (answer.status, answer.json()["status"]) == (200, "cancelled")
    assert of(site, Verb("POST", "/runs/{run}/cancel"), run, NOBODY).json() == answer.json()
    assert len(provider.calls) == 1


def test_who_is_not_signed_in_may_ask_what_is_public_alone(site: Site, provider: Provider) -> None:
    allowed = site.way == "session"
    for verb in (
        Verb("POST", "/runs", {}, {"chain": "chat", "input": "q"}),
        Verb("GET", "/stream_chat?question=q", LISTEN),
        Verb("POST", "/stream_chat", {}, {"question": "q"}),
        Verb("POST", "/runs", {}, {"chain": "open", "input": "q"}),
        Verb("GET", "/stream_open?question=q", LISTEN),
    ):
        answer = of(site, verb, NOWHERE, NOBODY)
        if allowed or "open" in f"{verb.path} {verb.body}":
            assert answer.status in (200, 201), verb
        else:
            refused(answer, 401)
    assert provider.wait_calls(5 if allowed else 2)
    assert len(provider.calls) == (5 if allowed else 2)


# A stream that is open, and its reader who is not welcome any more


@pytest.mark.parametrize("format", ["native", "text"])
def test_who_is_revoked_reads_no_further(site: Site, provider: Provider, format: str) -> None:
    name = f"carol-{format}"
    carol, dave = site.person(name), site.person("dave")
    provider.script = Script(["a", "b"], stall=1)
    with (
        site.listen("secret", carol, format=format) as stream,
        site.listen("another", dave) as other,
    ):
        assert all(stream.next_event() for _ in range({"native": 3, "text": 1}[format]))
        run = stream.parser.last_event_id.partition(":")[0]
        began = time.monotonic()
        site.revoke(site.principal(carol, name))
        event = last(stream)
        took = time.monotonic() - began
        provider.release()
        assert [event.type for event in other.events()][-1] == "end"
    assert took < RECHECK + 1.5
    if format == "native":
        assert event.type == "unauthorized"
        assert json.loads(event.data)["code"] == "unauthorized"
    else:
        assert (event.type, event.data) == ("error", "The sign-in has ended.")
    # It is no event of the run, and no place to go on from.
    assert event.id == f"{run}:3"
    if site.way == "own":
        # There the app itself says who is signed in, from one request to the next.
        assert site.ask("more", carol).status == 201
        return
    for verb in (READS[0], READS[2], READS[7]):
        refused(of(site, verb, run, carol), 401)
    refused(site.ask("more", carol), 401)


def test_a_run_goes_on_when_its_reader_may_not(tokens: Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], gated=True)
    short = bearer(token(exp=int(time.time()) + 3))
    with tokens.listen("long", short) as stream:
        event = last(stream)
        run = event.id.partition(":")[0]
    assert event.type == "unauthorized"
    told = json.loads(event.data)
    assert told == {"code": "unauthorized", "message": "The token has expired."}
    assert provider.wait_calls(1)
    assert not provider.calls[0].wait_closed(0.5)
    refused(tokens.status(run, short), 401, "Authorization")
    alice = tokens.person("alice")
    provider.allow(2)
    with tokens.follow(run, alice) as stream:
        assert json.loads(last(stream).data)["status"] == "done"


def test_text_says_that_the_token_has_expired(tokens: Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], gated=True)
    exp = int(time.time()) + 3
    with tokens.listen("long", bearer(token(exp=exp)), format="text") as stream:
        provider.allow(1)
        events = list(stream.events())
        assert stream.ended == "clean"
    assert exp <= time.time() < exp + 2
    assert [(event.type, event.data) for event in events] == [
        ("message", "a"),
        ("error", "The token has expired."),
    ]


def test_who_signs_out_of_the_app_reads_no_further(provider: Provider, tmp_path: Path) -> None:
    provider.script = Script(gated=True)
    with users(provider, tmp_path, USERS_AUTH="own", recheck=RECHECK) as server:
        site = Site(server, "own")
        alice = site.person("alice")
        with site.listen("secret", alice) as stream:
            assert stream.next_event()
            assert request("POST", f"{site.url}/logout/alice").status == 200
            assert last(stream).type == "unauthorized"
        refused(site.ask("more", alice), 401)
        assert site.ask("more", site.person("alice")).status == 201


@pytest.mark.parametrize("way", WAYS)
def test_who_was_revoked_may_sign_in_again(way: str, provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, **people.settings(way)) as server:
        site = Site(server, way)
        old = site.person("alice")
        assert site.ask("before", old).status == 201
        with ThreadPoolExecutor(4) as pool:  # a double click
            list(pool.map(lambda _: site.revoke(site.principal(old, "alice")), range(4)))
        if way != "own":  # there the app itself says who is signed in
            refused(site.ask("after", old), 401)

        def again() -> dict[str, str]:
            # A session's browser still sends the old one when it opens the page.
            if way == "session":
                return people.cookie(request("GET", f"{site.url}/", headers=old))
            return site.person("alice")

        # Times in tokens are whole seconds: one of the same second may count as the old one.
        until = time.monotonic() + 3
        while (answer := site.ask("again", again())).status == 401 and time.monotonic() < until:
            time.sleep(0.2)
        assert answer.status == 201, answer.body


# Sessions


def test_the_page_gives_a_session(plain: Site, provider: Provider) -> None:
    page = request("GET", f"{plain.url}/")
    (given,) = page.headers.get_all("Set-Cookie") or []
    name, *rest = given.split("; ")
    assert re.fullmatch(r"stream_session=[\w.-]+", name)
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=2592000"} <= set(rest)
    assert "Secure" not in rest
    assert "no-store" in page.headers["Cache-Control"]
    # Who has one keeps it.
    again = request("GET", f"{plain.url}/", headers={"Cookie": name})
    assert again.headers.get_all("Set-Cookie") is None
    ids = {people.session_of(plain.person("x")) for _ in range(20)}
    assert len(ids) == 20
    assert {len(id) for id in ids} == {32}


def test_on_https_a_session_is_for_https_alone(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, proxies=1) as server:
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
        page = request("GET", f"{server.url}/", headers=headers)
        assert "Secure" in page.headers["Set-Cookie"].split("; ")


def test_a_page_visit_makes_what_comes_after_it_ones_own(plain: Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], gated=True)
    with plain.listen("first") as stream:
        start = stream.next_event()
        assert start is not None
        assert "Set-Cookie" not in stream.headers
    run = start.id.partition(":")[0]
    provider.allow(2)
    # The browser comes back without a cookie, and then with one: it is the same run.
    with plain.listen("first", {"Last-Event-ID": start.id}) as stream:
        assert last(stream).type == "end"
    visitor = plain.person("a visitor")
    with plain.listen("first", {**visitor, "Last-Event-ID": f"{run}:2"}) as stream:
        assert last(stream).type == "end"
    assert len(provider.calls) == 1
    provider.script = Script()
    own = plain.finished("second", visitor)
    assert plain.status(own, visitor).status == 200
    assert plain.status(own).status == 404
    assert plain.status(run).status == 200


def test_a_script_of_our_own_gets_a_session_with_its_first_run(
    plain: Site, provider: Provider
) -> None:
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    answer = plain.ask("first", own)
    visitor = people.cookie(answer)
    run = answer.json()["run"]
    assert plain.status(run).status == 200
    assert plain.status(run, visitor).status == 200
    second = plain.ask("second", own | visitor)
    assert second.headers.get_all("Set-Cookie") is None
    assert plain.status(second.json()["run"]).status == 404


def forgeries(good: str) -> dict[str, str]:
    """Cookies that are no session: by what is wrong with them."""
    body, time, signature = good.rsplit(".", 2)
    id = people.session_of({"Cookie": f"stream_session={good}"})
    return {
        "empty": "",
        "garbage": "garbage",
        "dots": "..",
        "bytes": "\xff\xfe.\x80.x",
        "too long": "a" * 4000,
        "no signature": f"{body}.{time}",
        "signature altered": people.altered(good, -1),
        "signature of nothing": f"{body}.{time}.",
        "body altered": people.altered(good, 3),
        "time altered": f"{body}.{people.altered(time, -1)}.{signature}",
        "time left out": f"{body}.{signature}",
        "of another secret": sealed(id, "session", secret="another key for tests"),
        "too old": sealed(id, "session", age=2_592_001),
        "a ticket": sealed(id, "ticket"),
        "signed, but no id": sealed("x", "session"),
        "signed, but no text": sealed({"a": 1}, "session"),
    }


def test_a_cookie_that_is_not_good_is_no_session(plain: Site, provider: Provider) -> None:
    visitor = plain.person("a visitor")
    good = visitor["Cookie"].partition("=")[2]
    own = plain.finished("mine", visitor)
    # The test knows how to make one that counts.
    again = sealed(people.session_of(visitor), "session", age=2_000_000)
    assert plain.status(own, {"Cookie": f"stream_session={again}"}).status == 200
    for why, forged in forgeries(good).items():
        sent = {"Cookie": f"stream_session={forged}"}
        assert plain.status(own, sent).status == 404, why
        run = plain.start("anyone's", sent)
        assert plain.status(run).status == 200, why
        assert people.cookie(request("GET", f"{plain.url}/", headers=sent)) != sent, why


def test_the_latter_half_of_its_time_a_session_is_renewed(plain: Site, provider: Provider) -> None:
    visitor = plain.person("a visitor")
    own = plain.finished("mine", visitor)
    old = sealed(people.session_of(visitor), "session", age=1_300_000)
    page = request("GET", f"{plain.url}/", headers={"Cookie": f"stream_session={old}"})
    renewed = people.cookie(page)
    assert people.session_of(renewed) == people.session_of(visitor)
    assert plain.status(own, renewed).status == 200


# The key that signs


def test_a_key_on_its_way_out_is_still_good(provider: Provider, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/runs.db"

    def with_key(key: str, *fallbacks: str) -> AbstractContextManager[Server]:
        old = {"FLASK_SECRET_KEY_FALLBACKS": json.dumps(fallbacks)} if fallbacks else {}
        return users(provider, tmp_path, store=store, FLASK_SECRET_KEY=key, **old)

    with with_key("the first of the keys") as server:
        site = Site(server)
        early = site.person("early")
        run = site.finished("mine", early)
    with with_key("the second of the keys", "the first of the keys") as server:
        site = Site(server)
        assert site.status(run, early).status == 200
        late = site.person("late")
        new = site.finished("mine, too", late)
    with with_key("the second of the keys") as server:
        site = Site(server)
        assert site.status(run, early).status == 404
        assert site.status(new, late).status == 200


@pytest.fixture
def keyless(provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start in, for an app that has no secret key."""
    monkeypatch.delitem(USUAL, "FLASK_SECRET_KEY")
    return tmp_path / "instance"


def test_with_no_key_set_one_is_made_for_all_workers(keyless: Path, provider: Provider) -> None:
    keyless.mkdir()
    settings: dict[str, object] = {
        "store": f"sqlite:///{keyless}/runs.db",
        "WEB_CONCURRENCY": 2,
    }
    with users(provider, keyless, **settings) as server:
        site = Site(server)
        visitors: dict[str, dict[str, str]] = {}
        lock = threading.Lock()

        def visit() -> None:
            page = request("GET", f"{site.url}/")
            with lock:
                visitors[page.headers["X-Worker"]] = people.cookie(page)

        until = time.monotonic() + 30
        while len(visitors) < 2 and time.monotonic() < until:
            threads = [threading.Thread(target=visit) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(visitors) == 2
        runs = {site.finished("mine", who): who for who in visitors.values()}
        asked: dict[str, set[str]] = {run: set() for run in runs}
        while any(len(workers) < 2 for workers in asked.values()):
            assert time.monotonic() < until
            for run, who in runs.items():
                answer = site.status(run, who)
                assert answer.status == 200
                asked[run].add(answer.headers["X-Worker"])
    (path,) = keyless.glob("secret_key*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text()
    assert re.fullmatch("[0-9a-f]{64}", key)
    with users(provider, keyless, **settings) as server:
        for run, who in runs.items():
            assert Site(server).status(run, who).status == 200
    assert path.read_text() == key


def app_of(folder: Path, **config: object) -> Flask:
    """An app in this process, in a folder of its own."""
    app = Flask(__name__, instance_path=str(folder))
    app.config.update({"STREAM_STORE": "memory://"} | {k.upper(): v for k, v in config.items()})
    return app


def close(app: Flask) -> None:
    found: Service = app.extensions["flask_stream"]
    found.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY_FALLBACKS", "a text: each of its letters would be a key"),
        ("SECRET_KEY", 1234567890123456),
    ],
)
def test_a_key_that_is_none_is_told_at_start(tmp_path: Path, name: str, value: object) -> None:
    # Both are what an environment variable easily comes to, read as JSON.
    app = app_of(tmp_path, **({"SECRET_KEY": "a key for tests"} | {name: value}))
    with pytest.raises(ConfigError, match=name):
        FlaskStream(app)


# Tokens


def bad_tokens() -> dict[str, str]:
    """Tokens that are none, by what is wrong with them."""
    good = token()
    head, body, signature = good.split(".")
    rs256: dict[str, object] = {"alg": "RS256", "typ": "JWT"}
    now = int(time.time())
    return {
        "nothing": "",
        "garbage": "garbage",
        "dots": "..",
        "bytes": "\xff\xfe.\x80.x",
        "alg none": by_none(),
        "alg NoNe": by_none("NoNe"),
        "no alg": people.by_hand({"typ": "JWT"}),
        "public key as secret": people.by_hand({"alg": "HS256"}, people.pem().encode()),
        "any secret": people.by_hand({"alg": "HS256"}, b"secret"),
        "another key": token("two"),
        "another algorithm of the same key": jwt.encode(people.claims(), people.key(), "RS512"),
        "signature of nothing": f"{head}.{body}.",
        "no signature": f"{head}.{body}",
        "signature altered": people.altered(good, -40),
        "body altered": f"{head}.{people.altered(body, 30)}.{signature}",
        "a header that must be understood": token(headers={"crit": ["x"], "x": 1}),
        "RS256 that nobody has signed": people.by_hand(rs256),
        "no exp": token(exp=None),
        "expired": token(exp=now - 1),
        "exp is text": jwt_with(exp="never"),
        "exp is true": jwt_with(exp=True),
        "no aud": token(aud=None),
        "another aud": token(aud="another"),
        "no iss": token(iss=None),
        "another iss": token(iss="https://elsewhere.example"),
        "iss with more": token(iss=people.ISSUER + "/"),
        "no sub": token(sub=None),
        "sub is empty": token(sub=""),
        "sub is a number": jwt_with(sub=7),
        "nbf is to come": token(nbf=now + 600),
        "iat is to come": token(iat=now + 600),
        "two of them": f"{good},Bearer {good}",
        "with more": f"{good} {good}",
    }


def by_none(name: str = "none") -> str:
    return people.by_hand({"alg": name, "typ": "JWT"})


def jwt_with(**changed: object) -> str:
    """A token that the library would not make of itself."""
    encoded = jwt.api_jws.encode(
        json.dumps(people.claims(**changed)).encode(), people.key(), "RS256"
    )
    return str(encoded)


@pytest.mark.parametrize("why", bad_tokens())
def test_a_token_that_is_not_good_is_told_so(tokens: Site, provider: Provider, why: str) -> None:
    bad = bearer(bad_tokens()[why])
    word = {"expired": "The token has expired."}.get(why, "The token is not valid.")
    for verb in (
        Verb("POST", "/runs", {}, {"chain": "chat", "input": "q"}),
        Verb("GET", "/stream_chat?question=q", LISTEN),
        Verb("GET", "/stream_open?question=q", LISTEN),
        Verb("POST", "/tickets", {}, {"chain": "chat"}),
        READS[0],
        READS[2],
        READS[7],
    ):
        problem = refused(of(tokens, verb, NOWHERE, bad), 401, "Authorization")
        assert problem["detail"] == word
    assert not provider.calls


def test_a_good_token_is_its_subjects(tokens: Site, provider: Provider) -> None:
    alice = token(sub="alice")
    run = tokens.finished("mine", bearer(alice))
    for scheme in ("bearer", "BEARER", "Bearer "):
        assert tokens.status(run, {"Authorization": f"{scheme} {alice}"}).status == 200
    assert tokens.status(run, bearer(token(sub="alice", jti="another"))).status == 200
    assert tokens.status(run, bearer(token(sub="bob"))).status == 404
    several = token(aud=["another", people.AUDIENCE])
    assert tokens.status(run, bearer(several)).status == 200


def test_two_authorizations_are_none(tokens: Site, provider: Provider) -> None:
    pairs = [("Authorization", f"Bearer {token(sub=name)}") for name in ("alice", "bob")]
    with Stream(f"{tokens.url}/stream_chat?question=q", headers=pairs) as stream:
        # The server may refuse it before the app does.
        assert stream.status in (400, 401)
    assert not provider.calls


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "Token", ""])
def test_another_scheme_is_no_token(tokens: Site, provider: Provider, scheme: str) -> None:
    sent = {"Authorization": f"{scheme} {token()}".strip()}
    refused(tokens.ask("q", sent), 401)
    assert not provider.calls


def test_a_secret_is_good_for_its_algorithm_alone(provider: Provider, tmp_path: Path) -> None:
    settings = people.JWT | {"jwt_algorithm": "HS256", "jwt_key": people.JWT_SECRET}
    with users(provider, tmp_path, **settings) as server:
        site = Site(server, "jwt")
        secret = people.JWT_SECRET.encode()
        run = site.finished("mine", bearer(people.by_hand({"alg": "HS256"}, secret)))
        for bad in (
            people.by_hand({"alg": "none"}),
            people.by_hand({"alg": "HS256"}, b"another secret of thirty-two characters"),
            jwt.encode(people.claims(), people.JWT_SECRET * 2, "HS512"),
            token(),
        ):
            refused(site.status(run, bearer(bad)), 401, "Authorization")


JWT = {f"STREAM_{name.upper()}": value for name, value in people.JWT.items()}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"STREAM_JWT_ISSUER": None}, "STREAM_JWT_ISSUER"),
        ({"STREAM_JWT_AUDIENCE": ""}, "STREAM_JWT_AUDIENCE"),
        ({"STREAM_JWT_ALGORITHM": None}, "STREAM_JWT_ALGORITHM"),
        ({"STREAM_JWT_ALGORITHM": "none", "STREAM_JWT_KEY": "PEM"}, "STREAM_JWT_ALGORITHM"),
        ({"STREAM_JWT_ALGORITHM": "RS257", "STREAM_JWT_KEY": "PEM"}, "STREAM_JWT_ALGORITHM"),
        ({}, "STREAM_JWT_KEY or STREAM_JWT_JWKS"),
        ({"STREAM_JWT_ISSUER": None, "STREAM_JWT_AUDIENCE": None}, "ISSUER, STREAM_JWT_AUDIENCE"),
        ({"STREAM_JWT_KEY": "no key"}, "STREAM_JWT_KEY"),
        ({"STREAM_JWT_KEY": "short", "STREAM_JWT_ALGORITHM": "HS256"}, "STREAM_JWT_KEY"),
        ({"STREAM_JWT_KEY": "PEM", "STREAM_JWT_ALGORITHM": "HS256"}, "STREAM_JWT_KEY"),
        ({"STREAM_JWT_KEY": "PEM", "STREAM_JWT_ALGORITHM": "ES256"}, "STREAM_JWT_KEY"),
        ({"STREAM_JWT_KEY": "PEM", "STREAM_JWT_JWKS": "https://x.example"}, "STREAM_JWT_KEY"),
        ({"STREAM_JWT_JWKS": "file:///etc/passwd"}, "STREAM_JWT_JWKS"),
        (
            {"STREAM_JWT_JWKS": "https://x.example", "STREAM_JWT_ALGORITHM": "HS256"},
            "STREAM_JWT_ALGORITHM",
        ),
        ({"STREAM_AUTH": "magic"}, "STREAM_AUTH"),
    ],
    ids=str,
)
def test_tokens_that_could_not_be_checked_are_told_at_start(
    tmp_path: Path, changed: dict[str, str | None], named: str
) -> None:
    given = {k: people.pem() if v == "PEM" else v for k, v in changed.items()}
    with pytest.raises(ConfigError, match=named) as told:
        FlaskStream(app_of(tmp_path, **(JWT | given)))
    assert "PUBLIC KEY" not in str(told.value)


def test_tokens_need_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"STREAM_AUTH.*flask-llm-stream\[jwt\]"):
        FlaskStream(app_of(tmp_path, **(JWT | {"STREAM_JWT_KEY": people.pem()})))


# Published keys


class Published(ThreadingHTTPServer):
    """Keys at a URL: `names` are whose, `raw` is what is said instead; `asked` counts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keys)
        self.names = ["one"]
        self.raw: bytes | None = None
        self.asked = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/keys"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        algorithm = jwt.algorithms.RSAAlgorithm
        keys = [
            algorithm.to_jwk(people.key(name).public_key(), as_dict=True) for name in self.names
        ]
        named = [k | {"kid": name} for k, name in zip(keys, self.names, strict=True)]
        return json.dumps({"keys": named}).encode()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Keys(BaseHTTPRequestHandler):
    server: Published

    def do_GET(self) -> None:
        self.server.asked += 1
        body = self.server.body()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (body == b"cut")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture
def published() -> Iterator[Published]:
    server = Published()
    yield server
    with suppress(OSError):
        server.stop()


def named(name: str, signer: str | None = None) -> dict[str, str]:
    """What somebody sends along whose token says that it was signed with the key of that name."""
    return bearer(token(signer or name, headers={"kid": name}))


def test_published_keys_are_looked_up(
    provider: Provider, published: Published, tmp_path: Path
) -> None:
    published.names = ["one", "two"]
    with users(provider, tmp_path, **people.JWT, jwt_jwks=published.url) as server:
        site = Site(server, "jwt")
        for name in published.names:
            assert site.ask("q", named(name)).status == 201
        for bad in (
            named("one", signer="two"),
            named("three"),
            bearer(token()),  # names no key
            bearer(people.by_hand({"alg": "none", "kid": "one"})),
            bearer(people.by_hand({"alg": "HS256", "kid": "one"}, people.pem().encode())),
            bearer("garbage"),
        ):
            refused(site.ask("q", bad), 401, "Authorization")
        assert published.asked == 1
        published.stop()
        # What is known stays known.
        assert site.ask("q", named("one")).status == 201
        assert provider.wait_calls(3)
        assert len(provider.calls) == 3


@pytest.mark.parametrize("raw", [b"<!doctype html>", b"cut", b"\xff", b"[]", b"{}", b'{"keys":[]}'])
def test_keys_that_cannot_be_had_are_no_fault_of_the_token(
    provider: Provider, published: Published, tmp_path: Path, raw: bytes
) -> None:
    published.raw = raw
    app = app_of(tmp_path, **(JWT | {"STREAM_JWT_JWKS": published.url}))
    stream = FlaskStream(app)
    stream.add("chat", lambda question: iter(["never"]))
    client = app.test_client()
    answer = client.get(f"/runs/{NOWHERE}", headers=named("one"))
    assert (answer.status_code, answer.mimetype) == (503, "application/problem+json")
    assert int(answer.headers["Retry-After"]) >= 1
    assert published.url not in answer.text
    published.raw = None
    assert client.get(f"/runs/{NOWHERE}", headers=named("one")).status_code == 404
    close(app)


def test_keys_that_cannot_be_reached_are_no_fault_of_the_token(
    provider: Provider, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/keys"
    with users(provider, tmp_path, **people.JWT, jwt_jwks=url) as server:
        refused(Site(server).ask("q", named("one")), 503)
        # No key is needed to see that this is no token.
        refused(Site(server).ask("q", bearer("garbage")), 401, "Authorization")
        assert Site(server).ask("q", chain="open").status == 201
        assert provider.wait_calls(1)
    assert len(provider.calls) == 1


def test_a_new_key_is_found_and_nobody_can_make_us_look_all_the_time(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr("jwt.jwks_client.time", clock)
    app = app_of(tmp_path, **(JWT | {"STREAM_JWT_JWKS": published.url}))
    FlaskStream(app)
    client = app.test_client()

    def status(who: Sent) -> int:
        return client.get(f"/runs/{NOWHERE}", headers=dict(who)).status_code

    assert status(named("one")) == 404
    published.names = ["two"]
    for _ in range(20):
        assert status(named("three")) == 401
    assert published.asked == 1
    clock.monotonic = lambda: time.monotonic() + 31
    assert status(named("two")) == 404
    assert status(named("one")) == 401
    assert published.asked == 2
    close(app)
