"""Tickets: who gets one, and what it is good for: one run, once, for a while."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from . import people
from .people import LISTEN, NOBODY, NOWHERE, Sent, Site, altered, bearer, refused, sealed, users
from .provider import Provider, Script
from .sse import Response, Stream, request

KEY = "fsk_the-key-of-the-blog"
BLOG = bearer(KEY)
PAGE = "https://blog.example"
SETTINGS: dict[str, object] = {
    "api_keys": f"blog:{hashlib.sha256(KEY.encode()).hexdigest()}",
    "origins": PAGE,
    "recheck": 1,
}


@pytest.fixture(scope="module", params=["session", "jwt"])
def site(
    request: pytest.FixtureRequest, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The service, with an embedding site that has an API key; two workers."""
    folder = tmp_path_factory.mktemp("tickets")
    settings: dict[str, object] = {"store": f"sqlite:///{folder}/runs.db", "WEB_CONCURRENCY": 2}
    settings |= SETTINGS | people.settings(request.param)
    with users(_provider, folder, **settings) as server:
        yield Site(server, request.param)


@pytest.fixture(scope="module")
def brief(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same with tickets that start a run within four seconds."""
    with users(_provider, tmp_path_factory.mktemp("brief"), **SETTINGS, ticket_age=4) as server:
        yield Site(server)


def ticket(site: Site, who: Sent = BLOG, **fields: Any) -> dict[str, Any]:
    """A ticket, as `POST /tickets` gives it."""
    answer = request("POST", f"{site.url}/tickets", json={"chain": "chat"} | fields, headers=who)
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json()
    return made


def use(site: Site, made: dict[str, Any], question: str = "q", **headers: str) -> Stream:
    """What a page's `new EventSource(urls.stream + "&question=…")` opens: no cookie, no token."""
    url = f"{site.url}{made['urls']['stream']}&question={quote(question)}"
    sent = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Stream(url, headers=sent | {"Sec-Fetch-Dest": "empty"} | names)


def with_ticket(site: Site, method: str, path: str, text: str, body: Any = None) -> Response:
    """A request with that ticket, and nothing else to say for itself."""
    mark = "&" if "?" in path else "?"
    url = f"{site.url}{path}{mark}ticket={quote(text)}"
    return request(method, url, json=body, headers=LISTEN)


def answer_of(stream: Stream) -> tuple[str, str]:
    """What a stream says, and how it ends."""
    events = list(stream.events())
    said = [json.loads(event.data) for event in events if event.type == "message"]
    return "".join(data["content"] for data in said), events[-1].type


# Who gets one


def test_a_ticket_lets_an_eventsource_ask(site: Site, provider: Provider) -> None:
    before = time.time()
    visitor = site.person("alice")
    makers: list[tuple[Sent, dict[str, str]]] = [(BLOG, {}), (BLOG, {"user": "alice"})]
    for who, fields in [*makers, (visitor, {})]:
        made = ticket(site, who, **fields)
        assert set(made) == {"ticket", "run", "expires", "urls"}
        assert len(made["run"]) == 32
        assert before + 58 < made["expires"] < time.time() + 61
        with use(site, made) as stream:
            assert stream.status == 200
            assert stream.headers["Access-Control-Allow-Origin"] == PAGE
            assert "Set-Cookie" not in stream.headers
            assert answer_of(stream) == ("Hello world", "end")
            assert stream.parser.last_event_id.startswith(made["run"])
        with Stream(site.url + made["urls"]["events"]) as stream:
            assert answer_of(stream) == ("Hello world", "end")
        # It is the run of whoever it was made for.
        assert site.status(made["run"], visitor).status == (200 if who is visitor else 404)
        assert site.status(made["run"], BLOG).status == (200 if who is BLOG and not fields else 404)
    assert len(provider.calls) == 3


def test_a_posting_page_may_use_one_too(site: Site, provider: Provider) -> None:
    made = ticket(site)
    body = {"chain": "chat", "input": "q"}
    first = with_ticket(site, "POST", "/runs", made["ticket"], body)
    assert (first.status, first.json()["run"]) == (201, made["run"])
    again = with_ticket(site, "POST", "/runs", made["ticket"], body | {"run": made["run"]})
    assert (again.status, again.json()["run"]) == (200, made["run"])
    state = with_ticket(site, "GET", f"/runs/{made['run']}", made["ticket"])
    assert state.json()["chain"] == "chat"
    assert provider.wait_calls(1)
    assert len(provider.calls) == 1


def test_anyone_gets_no_ticket(site: Site, provider: Provider) -> None:
    body = {"chain": "chat"}
    for who in (NOBODY, {"Cookie": "stream_session=forged"}, {"Cookie": "session=x"}):
        refused(request("POST", f"{site.url}/tickets", json=body, headers=who), 401)
    for who in (bearer("fsk_wrong"), bearer(KEY + "x"), bearer(altered(KEY, 6))):
        answer = request("POST", f"{site.url}/tickets", json=body, headers=who)
        refused(answer, 401, "Authorization")


def test_a_ticket_makes_no_ticket(site: Site) -> None:
    made = ticket(site)
    refused(with_ticket(site, "POST", "/tickets", made["ticket"], {"chain": "chat"}), 403)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "chain"),
        ({"chain": "nothing"}, 404, "chain"),
        ({"chain": 7}, 400, "chain"),
        ({"chain": "chat", "run": "0123456789abcdef"}, 400, "run"),
        ({"chain": "chat", "parent": NOWHERE}, 404, "parent"),
        ({"chain": "chat", "parent": "short"}, 400, "parent"),
        ({"chain": "chat", "conversation": ""}, 400, "conversation"),
        ({"chain": "chat", "user": ""}, 400, "user"),
        ({"chain": "chat", "user": "a/b"}, 400, "user"),
        ({"chain": "chat", "user": "a\n"}, 400, "user"),
        ({"chain": "chat", "user": "x" * 129}, 400, "user"),
        ({"chain": "chat", "user": 7}, 400, "user"),
        ({"chain": "chat", "principal": "user:alice"}, 400, "principal"),
    ],
)
def test_a_ticket_for_nothing_is_refused(
    site: Site, body: dict[str, Any], status: int, field: str
) -> None:
    answer = request("POST", f"{site.url}/tickets", json=body, headers=BLOG)
    refused(answer, status, field)


def test_only_a_site_names_its_users(site: Site) -> None:
    body = {"chain": "chat", "user": "bob"}
    alice = site.person("alice")
    refused(request("POST", f"{site.url}/tickets", json=body, headers=alice), 400, "user")


# What it is good for


def test_to_use_it_twice_is_to_attach(site: Site, provider: Provider) -> None:
    provider.script = Script(["a", "b"], stall=1)
    made = ticket(site)
    with use(site, made) as first:
        for _ in range(3):
            assert first.next_event()
        with use(site, made) as second:
            place = [second.next_event() for _ in range(3)][-1]
            assert place is not None
            # The browser's own reconnect: the same URL, and where it was.
            with use(site, made, Last_Event_ID=place.id) as third:
                provider.release()
                assert answer_of(third) == ("b", "end")
            assert answer_of(second) == ("b", "end")
        assert answer_of(first) == ("b", "end")
    with use(site, made, Last_Event_ID=third.parser.last_event_id) as stream:
        assert stream.status == 204
    assert len(provider.calls) == 1


def test_it_is_good_for_one_question(site: Site, provider: Provider) -> None:
    made = ticket(site)
    with use(site, made, "the first") as stream:
        assert answer_of(stream)[1] == "end"
    with use(site, made, "another") as stream:
        assert stream.status == 409
    body = {"chain": "chat", "input": "another"}
    refused(with_ticket(site, "POST", "/runs", made["ticket"], body), 409, "run")
    assert len(provider.calls) == 1


def test_it_is_good_for_one_chain(site: Site, provider: Provider) -> None:
    made = ticket(site)
    for chain in ("other", "open"):
        url = f"{site.url}{made['urls']['stream']}".replace("stream_chat", f"stream_{chain}")
        refused(request("GET", f"{url}&question=q", headers=LISTEN), 403, "ticket")
        body = {"chain": chain, "input": "q"}
        refused(with_ticket(site, "POST", "/runs", made["ticket"], body), 403, "ticket")
    assert not provider.calls


def test_it_is_good_for_one_run(site: Site, provider: Provider) -> None:
    alice = site.person("alice")
    made, other = ticket(site, alice), ticket(site, alice)
    mine = site.finished("mine", alice)
    with use(site, other) as stream:
        assert answer_of(stream)[1] == "end"
    for run in (mine, other["run"]):
        for method, path in (
            ("GET", f"/runs/{run}"),
            ("GET", f"/runs/{run}/events"),
            ("GET", f"/runs/{run}/events?after=1"),
            ("POST", f"/runs/{run}/cancel"),
            ("GET", f"/stream_chat?question=q&run={run}"),
            ("GET", f"/stream_chat?question=q&after={run}:1"),
        ):
            answer = with_ticket(site, method, path, made["ticket"])
            none = with_ticket(site, method, path.replace(run, NOWHERE), made["ticket"])
            refused(answer, 404, "run")
            assert answer.body == none.body
        body = {"chain": "chat", "input": "mine", "run": run}
        refused(with_ticket(site, "POST", "/runs", made["ticket"], body), 404, "run")
    # Where it belongs was said when it was made.
    body = {"chain": "chat", "input": "q", "parent": mine}
    answer = with_ticket(site, "POST", "/runs", made["ticket"], body)
    assert answer.json()["parent"] is None
    assert provider.wait_calls(3)
    assert len(provider.calls) == 3


def test_it_is_good_for_no_conversation(site: Site, provider: Provider) -> None:
    alice = site.person("alice")
    mine = site.finished("mine", alice)
    conversation = site.status(mine, alice).json()["conversation"]
    made = ticket(site, alice, parent=mine)
    for method, path, body in (
        ("GET", "/conversations", None),
        ("GET", f"/conversations/{conversation}", None),
        ("PATCH", f"/conversations/{conversation}", {"title": "planted"}),
        ("DELETE", f"/conversations/{conversation}", None),
    ):
        answer = with_ticket(site, method, path, made["ticket"], body)
        assert answer.status in (403, 404), (method, path, answer.body)
        assert conversation.encode() not in answer.body
    there = request("GET", f"{site.url}/conversations/{conversation}", headers=alice)
    assert there.json()["title"] == "mine"
    assert len(provider.calls) == 1


def test_a_ticket_stops_no_other_run(site: Site, provider: Provider) -> None:
    provider.scripts["live"] = Script(["half of ", "it"], stall=1)
    alice = site.person("alice")
    live = site.start("live", alice)
    conversation = site.status(live, alice).json()["conversation"]
    for word in ("interrupt", "replace"):
        made = ticket(site, alice, conversation=conversation)
        url = f"{site.url}{made['urls']['stream']}&question=q&multitask={word}"
        with Stream(url, headers=LISTEN) as stream:
            assert stream.status == 409
    assert site.status(live, alice).json()["status"] == "running"
    provider.release()


def test_a_ticket_goes_on_with_a_conversation(site: Site, provider: Provider) -> None:
    alice = site.person("alice")
    first = site.finished("first", alice)
    conversation = site.status(first, alice).json()["conversation"]
    made = ticket(site, alice, parent=first)
    with use(site, made, "second") as stream:
        assert answer_of(stream)[1] == "end"
    described = site.status(made["run"], alice).json()
    assert (described["parent"], described["conversation"]) == (first, conversation)
    body = {"chain": "chat", "parent": first}
    refused(request("POST", f"{site.url}/tickets", json=body, headers=BLOG), 404, "parent")


def test_it_cancels_its_run(site: Site, provider: Provider) -> None:
    provider.script = Script(stall=1)
    made = ticket(site)
    with use(site, made) as stream:
        assert stream.next_event()
        answer = request("POST", site.url + made["urls"]["cancel"], headers={"Origin": PAGE})
        assert (answer.status, answer.json()["status"]) == (200, "cancelled")
        assert provider.calls[0].wait_closed()
        assert json.loads(list(stream.events())[-1].data)["status"] == "cancelled"


def test_a_site_s_users_do_not_see_each_other(site: Site, provider: Provider) -> None:
    alice, bob = (ticket(site, user=name) for name in ("alice", "bob"))
    for made in (alice, bob):
        with use(site, made) as stream:
            assert answer_of(stream)[1] == "end"
    body = {"chain": "chat", "parent": alice["run"], "user": "bob"}
    refused(request("POST", f"{site.url}/tickets", json=body, headers=BLOG), 404, "parent")
    again = ticket(site, user="alice", parent=alice["run"])
    with use(site, again, "and then?") as stream:
        assert answer_of(stream)[1] == "end"


@pytest.mark.parametrize(
    "why", ["altered", "cut", "other secret", "other purpose", "cookie", "garbage", "empty", "two"]
)
def test_a_ticket_that_is_not_genuine_is_told_so(site: Site, provider: Provider, why: str) -> None:
    good = ticket(site)
    text, said = good["ticket"], {"run": "f" * 32, "chain": "chat", "principal": "user:alice"}
    # The test knows how to make one that counts.
    assert with_ticket(site, "GET", f"/runs/{'f' * 32}", sealed(said, "ticket")).status == 404
    forged = {
        "altered": altered(text, 12),
        "cut": text[:-1],
        "other secret": sealed(said, "ticket", secret="another key for tests"),
        "other purpose": sealed(said, "session"),
        "cookie": sealed("f" * 32, "session"),
        "garbage": "\0é☃.",
        "empty": "",
        "two": f"{text}.{text}",
    }[why]
    for method, path, body in (
        ("GET", "/stream_chat?question=q", None),
        ("POST", "/stream_chat", {"question": "q"}),
        ("POST", "/runs", {"chain": "open", "input": "q"}),
        ("GET", f"/runs/{good['run']}", None),
        ("GET", f"/runs/{good['run']}/events", None),
        ("POST", f"/runs/{good['run']}/cancel", None),
    ):
        problem = refused(with_ticket(site, method, path, forged, body), 401, "ticket")
        assert problem["detail"] == "The ticket is not valid."
    assert not provider.calls


def test_a_ticket_goes_before_who_brings_it(site: Site, provider: Provider) -> None:
    alice, bob = site.person("alice"), site.person("bob")
    made = ticket(site, alice)
    url = f"{site.url}{made['urls']['stream']}&question=q"
    with Stream(url, headers=bob) as stream:
        assert answer_of(stream)[1] == "end"
    assert site.status(made["run"], alice).status == 200
    assert site.status(made["run"], bob).status == 404


# For a while


def test_in_the_end_it_starts_nothing_and_reads_what_it_started(
    brief: Site, provider: Provider
) -> None:
    provider.script = Script(["a", "b"], stall=1)
    used, unused = ticket(brief), ticket(brief)
    with use(brief, used) as stream:
        for _ in range(3):
            assert stream.next_event()
        place = stream.parser.last_event_id
    # It says until when, and means it: to the second, as it is told in seconds.
    time.sleep(max(0.0, used["expires"] - time.time()) + 1)
    with use(brief, unused) as stream:
        assert stream.status == 401
        assert stream.headers["WWW-Authenticate"] == "Bearer"
        assert "expired" in json.loads(stream.read())["detail"]
    assert with_ticket(brief, "GET", f"/runs/{unused['run']}", unused["ticket"]).status == 404
    # The used one: a reconnect, the whole thing once more, and Stop.
    with use(brief, used, Last_Event_ID=place) as rest, use(brief, used) as whole:
        for _ in range(3):
            assert whole.next_event()
        provider.release()
        assert answer_of(rest) == ("b", "end")
        assert answer_of(whole) == ("b", "end")
    assert with_ticket(brief, "GET", f"/runs/{used['run']}", used["ticket"]).status == 200
    assert len(provider.calls) == 1


def test_until_it_expires_it_starts_its_run(brief: Site, provider: Provider) -> None:
    for _ in range(3):
        # Whatever part of a second the clock is at.
        made = ticket(brief)
        time.sleep(max(0.0, made["expires"] - time.time() - 0.35))
        with use(brief, made) as stream:
            assert stream.status == 200
            stream.read()


def test_after_the_longest_run_it_is_good_for_nothing(brief: Site, provider: Provider) -> None:
    run = brief.finished("mine", BLOG)
    said = {"run": run, "chain": "chat", "principal": "site:blog"}
    assert with_ticket(brief, "GET", f"/runs/{run}", sealed(said, "ticket")).status == 200
    early = sealed(said, "ticket", age=1790)
    assert with_ticket(brief, "GET", f"/runs/{run}", early).status == 200
    late = sealed(said, "ticket", age=1810)
    problem = refused(with_ticket(brief, "GET", f"/runs/{run}", late), 401, "ticket")
    assert problem["detail"] == "The ticket has expired."
    refused(
        with_ticket(brief, "GET", f"/runs/{run}", sealed(said, "ticket", age=-600)), 401, "ticket"
    )


@pytest.mark.parametrize(("user", "whom"), [("alice", "site:blog/alice"), ("bob", "site:blog")])
def test_who_is_revoked_has_no_tickets(
    brief: Site, provider: Provider, user: str, whom: str
) -> None:
    provider.script = Script(["a", "b"], stall=1)
    used, unused = (ticket(brief, user=user) for _ in range(2))
    with use(brief, used) as stream:
        assert stream.next_event()
        brief.revoke(whom)
        assert list(stream.events())[-1].type == "unauthorized"
    for made in (used, unused):
        refused(with_ticket(brief, "GET", f"/runs/{made['run']}", made["ticket"]), 401)
        with use(brief, made) as stream:
            assert stream.status == 401
    assert len(provider.calls) == 1


def test_a_ticket_and_its_question_are_not_logged(site: Site, provider: Provider) -> None:
    made = ticket(site)
    with use(site, made, "a canary of a question") as stream:
        assert answer_of(stream)[1] == "end"
    for secret in (made["ticket"], "canary", KEY):
        assert secret not in site.server.log
