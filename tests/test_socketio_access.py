"""Socket.IO: who may open a session, ask in it, and be heard in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import socketio

from . import people
from .people import NOBODY, NOWHERE, Sent, bearer, sealed, session_of, token, users
from .provider import Provider, Script
from .server import Server, environment, gunicorn
from .sio import CLOSE, Client, ConnectError, Poll, SessionRefused, Wire
from .sio_sites import TRANSPORTS, UPGRADE, Opened, asked, either, fresh, transports
from .sse import request
from .test_websocket import LISTED, OWN, left, run_of, wait_for, wires
from .ws import Ended, text_of


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
            Poll(url, headers=headers).put(CLOSE)
        except SessionRefused as turned:
            return turned.status
        return 200
    answer = request(
        "GET", f"{url}/socket.io/?EIO=4&transport=websocket", headers=UPGRADE | dict(headers)
    )
    return 200 if answer.status == 101 else answer.status


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
        client.put(CLOSE)


def test_there_is_no_jsonp(closed: people.Site) -> None:
    answer = request("GET", f"{closed.url}/socket.io/?EIO=4&transport=polling&j=0")
    people.refused(answer, 400, "j")
    with Poll(closed.url) as client:
        people.refused(client.post("d=3"), 400, "body")
        people.refused(client.get(query="&j=1"), 400, "j")
        client.put(CLOSE)


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
            one.put(CLOSE)
    assert len(provider.calls) == 1


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
        client.put(CLOSE)


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
                said = "The token has expired." if auth else "Sign in to start a run here."
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
        client.put(CLOSE)


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
        anyone.put(CLOSE)
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
        client.put(CLOSE)
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
        clients[0].put(CLOSE)
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
            client.next_event()
        # Who does not go is let go, and is not told it again and again.
        began = time.monotonic()
        assert client.end() in (1000, 1006)
        assert time.monotonic() - began < 5
    with opened(closed.url) as client:
        client.connect({"token": token(sub="brief")})
        client.emit("stream_resume", {"after": events[-2]["id"]})
        provider.release()
        assert text_of(events + client.events()) == "ab"
        client.put(CLOSE)
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
        client.wait(lambda: bool(client.data_of("stream_unauthorized")))
        client.wait(lambda: bool(client.disconnects))
    assert [call.question for call in provider.calls] == ["one"]


# Whose session it is

EVIL = {"Origin": "https://evil.example"}


@pytest.fixture(scope="module")
def _known(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[people.Site]:
    folder = tmp_path_factory.mktemp("known")
    with users(_provider, folder, origins=LISTED) as server:
        yield people.Site(server)


@pytest.fixture
def known(_known: people.Site, provider: Provider) -> people.Site:
    """A service whose people have cookies."""
    return _known


def ticket(site: people.Site, who: Sent) -> dict[str, Any]:
    made: dict[str, Any] = request(
        "POST", f"{site.url}/tickets", json={"chain": "chat"}, headers=who
    ).json()
    return made


def refused_alike(client: Poll, who: Sent, query: str, status: int, field: str | None) -> None:
    """Check that whoever says the session's id with that is refused, whatever it wants of it."""
    said = b'42["stream_question","in another\'s name"]'
    wire = client.url.replace("transport=polling", "transport=websocket")
    for answer in (
        request("GET", client.url + query, headers=who),
        request("POST", client.url + query, headers=who, body=said),
        request("GET", wire + query, headers=UPGRADE | dict(who)),
    ):
        people.refused(answer, status, field)


@pytest.mark.parametrize(
    "other", ["nobody", "bob", "expired", "forged", "key", "a ticket of hers", "a ticket of bob's"]
)
def test_the_sessions_id_makes_nobody_its_owner(
    known: people.Site, provider: Provider, other: str
) -> None:
    hers, his, query = known.person("alice"), known.person("bob"), ""
    long_ago = sealed(session_of(hers), "session", age=2_592_100)
    others: dict[str, Sent] = {
        "bob": his,
        "expired": {"Cookie": f"stream_session={long_ago}"},
        "forged": {"Cookie": people.altered(hers["Cookie"], -20)},
        "key": bearer("fls_nonsense"),
    }
    if other.startswith("a ticket"):
        query = f"&ticket={ticket(known, hers if other.endswith('hers') else his)['ticket']}"
    with Poll(known.url, headers=hers) as client:
        client.connect()
        refused_alike(client, others.get(other, NOBODY), query, 400, "sid")
        assert provider.calls == []
        # It is hers as before, and she may change its wire.
        assert asked(client, "Still there?")[-1]["data"]["full_response"] == "Hello world"
        with Wire(known.url, query=f"&sid={client.session['sid']}", headers=hers) as wire:
            wire.put("2probe")
            assert wire.take() == "3probe"
    assert [call.question for call in provider.calls] == ["Still there?"]


def test_what_is_said_of_oneself_later_is_no_other_owner(
    closed: people.Site, provider: Provider
) -> None:
    hers = bearer(token(sub="owner"))
    with Poll(closed.url, headers=hers) as client:
        client.connect({"token": token(sub="guest")})
        refused_alike(client, bearer(token(sub="guest")), "", 400, "sid")
        refused_alike(client, NOBODY, "", 400, "sid")
        # Her next token is hers, too.
        client._headers = bearer(token(sub="owner", exp=int(time.time()) + 60))
        run = run_of(asked(client, {"chain": "chat", "question": "x"})[0])
        assert closed.status(run, bearer(token(sub="guest"))).status == 200
        client.put(CLOSE)
    # Who was nobody at the handshake sends nothing then, or has got a cookie meanwhile.
    with Poll(closed.url) as client:
        client.connect({"token": token(sub="guest")})
        for headers in (NOBODY, hers):
            client._headers = dict(headers)
            assert asked(client, {"chain": "chat", "question": "x"})[-1]["type"] == "end"
        client.put(CLOSE)
    assert len(provider.calls) == 3


def test_a_token_that_has_run_out_has_no_session(closed: people.Site) -> None:
    until = int(time.time()) + 2
    with Poll(closed.url, headers=bearer(token(sub="soon", exp=until))) as client:
        client.connect()
        time.sleep(max(0.0, until - time.time()) + 0.01)
        people.refused(client.get(), 400, "sid")


@pytest.mark.parametrize("opener", ["cookie", "anyone", "auth"])
@pytest.mark.parametrize("excuse", ["none", "nonsense", "nothing", "ticket", "key"])
def test_a_foreign_page_is_heard_in_nobodys_session(
    known: people.Site, provider: Provider, opener: str, excuse: str
) -> None:
    hers = known.person("alice")
    own = hers if opener == "cookie" else NOBODY
    made = ticket(known, hers)["ticket"]
    with Poll(known.url, headers=own) as client:
        client.connect({"ticket": made} if opener == "auth" else None)
        queries = {"nonsense": "&ticket=x", "nothing": "&ticket=", "ticket": f"&ticket={made}"}
        query = queries.get(excuse, "")
        # A browser sends the cookie with it.
        who = hers | (bearer("x") if excuse == "key" else {})
        refused_alike(client, EVIL | who, query, 403, None)
        cross = {"Sec-Fetch-Site": "cross-site"} | who
        people.refused(request("GET", client.url + query, headers=cross), 403)
        assert provider.calls == []
        # Pages of listed origins, and our own, are.
        for origin in (LISTED, known.url):
            client._headers = dict(own) | {"Origin": origin}
            message = {"question": "Still there?", "multitask": "interrupt"}
            assert asked(client, message)[-1]["type"] == "end"
            client._headers |= {"Sec-Fetch-Site": "same-origin"}
            assert client.post("3").body == b"OK"


@pytest.mark.parametrize("page", ["foreign", "own"])
def test_a_session_of_a_ticket_is_of_that_ticket(
    known: people.Site, provider: Provider, page: str
) -> None:
    hers = known.person("alice")
    # It may start its run for four seconds more.
    run, until = fresh(), time.time() + 4
    said = {"run": run, "chain": "chat", "principal": known.principal(hers, "alice")}
    query = f"&ticket={sealed(said, 'ticket', age=56)}"
    # A foreign page's browser sends no cookie; our own page's does.
    headers = EVIL if page == "foreign" else hers
    provider.script = Script(["a", "b"], gated=True)
    with Poll(known.url, query=query, headers=headers) as client:
        client.connect()
        client.emit("stream_question", "Hello")
        provider.allow()
        events = client.events("chunk")
        time.sleep(max(0.0, until - time.time()))
        provider.allow()
        # Now it may start nothing, and is heard as before.
        assert text_of(events + client.events()) == "ab"
        client.emit("stream_resume", {"run": run, "after": 0})
        assert text_of(client.events()) == "ab"
        with Wire(known.url, query=f"{query}&sid={client.session['sid']}", headers=headers) as wire:
            wire.put("2probe")
            assert wire.take() == "3probe"
        bare = client.url.replace(query, "")
        assert bare != client.url
        another = bare + f"&ticket={ticket(known, hers)['ticket']}"
        for url, who in ((bare, hers), (bare, known.person("bob")), (another, hers)):
            people.refused(request("GET", url, headers=who), 400, "sid")
    assert len(provider.calls) == 1


@transports
def test_the_official_client_repeats_what_it_opened_its_session_with(
    known: people.Site, provider: Provider, transports: list[str]
) -> None:
    hers = known.person("alice")
    with Client(known.url, *transports, said=hers) as client:
        assert client.transport == transports[-1]
        run = client.ask("Hello")
        assert client.events(run)[-1]["type"] == "end"
        assert known.status(run, hers).status == 200
    made = ticket(known, hers)
    with Client(f"{known.url}?ticket={made['ticket']}", *transports) as client:
        assert client.transport == transports[-1]
        assert client.ask("Hello") == made["run"]
        assert client.events(made["run"])[-1]["type"] == "end"
    assert len(provider.calls) == 2
