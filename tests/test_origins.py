"""Which pages may ask, in a real browser and header by header; what counts is the model's calls."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from . import chromium, sites
from .chromium import PATIENCE
from .provider import Provider, Script
from .proxy import Proxy
from .server import ROOT, Server, environment, gunicorn
from .sites import MARKUP, VECTORS, Pages, Vector
from .sse import Response, Stream, request

LISTED = "https://example.org"
IPV6 = "http://[::1]:8765"
API_KEY = "fsk_a-key-of-a-site-for-tests"
#: Every request as it came and was answered: the query, which has the vector's name, as well.
ACCESS = (
    "seen %(m)s %(U)s [%(q)s] site=%({sec-fetch-site}i)s mode=%({sec-fetch-mode}i)s "
    "dest=%({sec-fetch-dest}i)s origin=%({origin}i)s cookie=%({cookie}i)s %(s)s"
)

browsers = chromium.needed
browser, visitor = sites.browser, sites.visitor


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with Pages() as pages:
        yield pages


@pytest.fixture(scope="module")
def _site(_provider: Provider, pages: Pages) -> Iterator[Server]:
    env = environment(
        model="openai:scripted",
        model_retries=0,
        origins=f"{LISTED} {IPV6} {pages.origin('allowed.localhost')} "
        f"{pages.origin('allowed.test')}",
        api_keys=f"blog:{sha256(API_KEY.encode()).hexdigest()}",
        OPENAI_BASE_URL=_provider.url,
        OPENAI_API_KEY="test",
    )
    command = gunicorn("--access-logfile", "-", "--access-logformat", ACCESS)
    with Server(command, env) as server:
        yield server


@pytest.fixture
def site(_site: Server, provider: Provider) -> Server:
    """The service, with one origin or two listed; its access log tells what has reached it."""
    return _site


def ask(server: Server, question: str) -> None:
    """Ask as the page does, to the end."""
    answer = request(
        "POST",
        f"{server.url}/stream_chat",
        json={"question": question},
        headers={"Sec-Fetch-Site": "same-origin"},
    )
    assert answer.status == 200, answer.body


def asked(provider: Provider, server: Server) -> list[str]:
    """What the model was asked until now: all that was started before has asked it by then."""
    provider.scripts["a question in good order"] = Script()
    ask(server, "a question in good order")
    questions = [call.question for call in provider.calls]
    assert "a question in good order" in questions
    return [question for question in questions if question != "a question in good order"]


@dataclass(frozen=True)
class Seen:
    """A request as the service saw it."""

    headers: str
    status: int


def seen(server: Server, method: str, name: str, path: str = "/stream_chat") -> Seen:
    """Wait until the request of that name has been answered."""
    pattern = rf"seen {method} {path} \[[^\]]*question={re.escape(name)}(?:&[^\]]*)?\] (.*) (\d+)\""
    match = server.wait_log(re.compile(pattern), PATIENCE / 1000)
    return Seen(match[1], int(match[2]))


def started(server: Server) -> int:
    return len(re.findall("started, chain", server.log))


def enter(visitor: BrowserContext, url: str) -> Page:
    """The service's own page: whoever was there has a session."""
    page = visitor.new_page()
    page.goto(url)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=PATIENCE)
    assert [cookie["name"] for cookie in visitor.cookies(url)] == ["stream_session"]
    return page


def attempt(page: Page, vector: Vector, url: str, question: str, path: str = "/stream_chat") -> str:
    """Have a page try it; what it could read."""
    read: str = page.evaluate(
        vector.function,
        {"url": f"{url}{path}?question={question}", "body": json.dumps({"question": question})},
    )
    return read


# In a browser


ELSEWHERE = {
    "another-site": "foreign.localhost",
    # The service's own host, and so its own site: its cookies are sent.
    "another-port": "127.0.0.1",
    # A listed name is no prefix.
    "a-longer-name": "allowed.localhost.foreign.localhost",
}


@browsers
@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_page_of_another_origin_cannot_ask(
    where: str, visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    enter(visitor, site.url)
    before = started(site)
    foreign = visitor.new_page()
    foreign.goto(pages.origin(ELSEWHERE[where]))
    read = {
        name: text
        for name, vector in VECTORS.items()
        if (text := attempt(foreign, vector, site.url, f"{where}-{name}"))
    }
    assert read == {}
    # All of them have arrived, from where they should come, and with what a browser adds.
    came = {name: seen(site, vector.sends, f"{where}-{name}") for name, vector in VECTORS.items()}
    answers = {name: one.status for name, one in came.items() if VECTORS[name].sends != "OPTIONS"}
    assert {name: s for name, s in answers.items() if not 400 <= s < 500} == {}
    told = "same-site" if where == "another-port" else "cross-site"
    untold = {name for name, one in came.items() if f"site={told} " not in one.headers}
    assert untold <= {"websocket", *(n for n, v in VECTORS.items() if v.sends == "OPTIONS")}
    if where == "another-port":
        for name in ("image", "no-cors-get", "no-cors-post", "json-form", "websocket"):
            assert "cookie=stream_session=" in came[name].headers, name
    assert asked(provider, site) == []
    assert started(site) == before + 1
    for name, vector in VECTORS.items():  # what a preflight went before was never sent
        if vector.sends == "OPTIONS":
            assert not re.search(rf"seen (GET|POST) \S+ \[question={where}-{name}\]", site.log)


@browsers
@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_page_of_another_origin_cannot_touch_a_visitors_run(
    where: str, visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    provider.script = Script(["still ", "here"], gated=True)
    own = enter(visitor, site.url)
    run: str = own.evaluate(
        """async () => (await (await fetch("/runs", {
          method: "POST", headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ chain: "chat", input: "Go on" }),
        })).json()).run"""
    )
    provider.allow(1)
    assert provider.wait_calls(1)
    assert provider.calls[0].wait_sent(1)
    foreign = visitor.new_page()
    foreign.goto(pages.origin(ELSEWHERE[where]))
    tried = [name for name, vector in VECTORS.items() if vector.sends == "POST"]
    for name in tried:
        path = f"/runs/{run}/cancel"
        assert attempt(foreign, VECTORS[name], site.url, f"{where}-{name}", path) == ""
        assert seen(site, "POST", f"{where}-{name}", path).status == 403
    for name, vector in VECTORS.items():
        if vector.sends == "GET":
            for path in (f"/runs/{run}", "/conversations"):
                assert attempt(foreign, vector, site.url, f"{where}-{name}", path) == "", name
    listen = VECTORS["credentials-eventsource"]
    assert attempt(foreign, listen, site.url, f"{where}-listen", f"/runs/{run}/events") == ""
    state = own.evaluate(f"async () => (await (await fetch('/runs/{run}')).json()).status")
    assert state == "running"
    assert provider.calls[0].closed_at is None
    provider.release()
    assert own.evaluate(
        f"async () => (await (await fetch('/runs/{run}/events')).text()).includes('here')"
    )


READ = """
async ({ url, credentials }) => await new Promise((resolve) => {
  const source = new EventSource(url, { withCredentials: credentials });
  let said = "", opened = 0;
  source.onopen = () => { opened += 1; };
  source.onmessage = (event) => { said += event.data; document.title = said; };
  source.addEventListener("end", () => { source.close(); resolve({ said, opened }); });
  source.onerror = () => {
    if (source.readyState === 2) resolve({ said, opened, refused: true });
  };
})
"""


@browsers
@pytest.mark.parametrize("credentials", [False, True])
def test_a_listed_page_listens_and_comes_back(
    credentials: bool, visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    provider.script = Script(["one ", "two ", "three"], gated=True)
    page = visitor.new_page()
    page.goto(pages.origin("allowed.localhost"))
    with Proxy(urlsplit(site.url).port or 0) as way:
        url = f"{way.url}/stream_chat?format=text&question=listed-{credentials}"
        page.evaluate(
            f"(asked) => {{ window.read = ({READ})(asked); }}",
            {"url": url, "credentials": credentials},
        )
        provider.allow(2)
        expect(page).to_have_title("one two", timeout=PATIENCE)
        assert way.cut() >= 1
        provider.release()
        said = page.evaluate("() => window.read")
    assert said == {"said": "one two three", "opened": 2}
    assert asked(provider, site) == [f"listed-{credentials}"]


@browsers
def test_a_listed_page_asks_with_fetch_and_comes_back_through_the_preflight(
    visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    page = visitor.new_page()
    page.goto(pages.origin("allowed.localhost"))
    whole: str = page.evaluate(
        """async ({ url }) => await (await fetch(url, {
          method: "POST", credentials: "include", body: JSON.stringify({ question: "fetched" }),
          headers: { "Content-Type": "application/json" },
        })).text()""",
        {"url": f"{site.url}/stream_chat?question=fetched"},
    )
    ids = re.findall("^id: (.+)$", whole, re.MULTILINE)
    assert "Hello" in whole
    assert len(ids) > 3
    assert seen(site, "OPTIONS", "fetched").status == 200
    rest: str = page.evaluate(
        """async ({ url, last }) => await (await fetch(url, {
          headers: { Accept: "text/event-stream", "Last-Event-ID": last },
        })).text()""",
        {"url": f"{site.url}/stream_chat?question=resumed", "last": ids[2]},
    )
    assert re.findall("^id: (.+)$", rest, re.MULTILINE) == ids[3:]
    assert seen(site, "OPTIONS", "resumed").status == 200
    # It reads where a run is, and how long to wait, and its errors.
    answer = page.evaluate(
        """async ({ url }) => {
          const answer = await fetch(url, {
            method: "POST", body: JSON.stringify({ chain: "chat", input: "started" }),
            headers: { "Content-Type": "application/json" },
          });
          return [answer.status, answer.headers.get("Location"), (await answer.json()).run];
        }""",
        {"url": f"{site.url}/runs"},
    )
    assert answer[:2] == [201, f"/runs/{answer[2]}"]
    lost = page.evaluate(
        "async ({ url }) => (await (await fetch(url)).json()).title",
        {"url": f"{site.url}/runs/{'0' * 32}"},
    )
    assert lost == "Not found"
    assert asked(provider, site) == ["fetched", "started"]


@browsers
@pytest.mark.parametrize("where", ["allowed.localhost", "127.0.0.1"])
def test_markup_asks_nothing_on_a_listed_page_and_on_our_own(
    where: str, visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    enter(visitor, site.url)
    page = visitor.new_page()
    own = where == "127.0.0.1"
    # The page's own policy would let most of it not even leave: an answer without one does.
    page.goto(f"{site.url}/health/live" if own else pages.origin(where))
    for name, vector in MARKUP.items():
        attempt(page, vector, site.url, f"{where}-{name}")
    answers = {n: seen(site, v.sends, f"{where}-{n}") for n, v in MARKUP.items()}
    assert {n: one.status for n, one in answers.items() if not 400 <= one.status < 500} == {}
    if own:
        assert all("site=same-origin " in one.headers for one in answers.values())
    # What somebody types, or clicks on in a mail.
    page.goto(f"{site.url}/stream_chat?question={where}-typed", wait_until="commit")
    assert seen(site, "GET", f"{where}-typed").status == 403
    assert asked(provider, site) == []


@browsers
def test_our_own_page_asks(visitor: BrowserContext, site: Server, provider: Provider) -> None:
    page = enter(visitor, site.url)
    page.get_by_label("Your question").fill("typed in")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer").last).to_have_text("Hello world", timeout=PATIENCE)
    said = page.evaluate(
        READ,
        {"url": f"{site.url}/stream_chat?format=text&question=listened", "credentials": False},
    )
    assert said == {"said": "Hello world", "opened": 1}
    text = page.evaluate("async () => (await fetch('/stream_chat?question=fetched')).text()")
    assert "Hello" in text
    assert asked(provider, site) == ["typed in", "listened", "fetched"]


@browsers
def test_on_plain_http_a_browser_says_less_and_markup_still_asks_nothing(
    visitor: BrowserContext, pages: Pages, site: Server, provider: Provider
) -> None:
    url = f"http://service.test:{urlsplit(site.url).port}"
    own = enter(visitor, url)
    said = own.evaluate(
        READ, {"url": f"{url}/stream_chat?format=text&question=plain", "credentials": False}
    )
    assert said == {"said": "Hello world", "opened": 1}
    assert "site=- " in seen(site, "GET", "plain").headers
    foreign = visitor.new_page()
    foreign.goto(pages.origin("foreign.test"))
    # This one is told from nobody's by nothing: SECURITY.md says so.
    tried = {n: v for n, v in VECTORS.items() if n != "no-cors-event-stream"}
    for name, vector in tried.items():
        assert attempt(foreign, vector, url, f"plain-{name}") == "", name
    local = visitor.new_page()
    local.goto(f"{url}/health/live")
    for name, vector in MARKUP.items():
        attempt(local, vector, url, f"plain-own-{name}")
    answers = {n: seen(site, v.sends, f"plain-{n}").status for n, v in tried.items()}
    answers |= {f"own-{n}": seen(site, v.sends, f"plain-own-{n}").status for n, v in MARKUP.items()}
    preflights = {n for n, v in tried.items() if v.sends == "OPTIONS"}
    assert {n: s for n, s in answers.items() if n not in preflights and not 400 <= s < 500} == {}
    assert asked(provider, site) == ["plain"]
    allowed = visitor.new_page()
    allowed.goto(pages.origin("allowed.test"))
    said = allowed.evaluate(
        READ, {"url": f"{url}/stream_chat?format=text&question=allowed", "credentials": True}
    )
    assert said == {"said": "Hello world", "opened": 1}


# Header by header


#: A request's headers that tell where it comes from; None is for none.
SITES = (None, "same-origin", "same-site", "cross-site", "none")
MODES = (None, "cors", "same-origin", "no-cors", "navigate", "websocket")
DESTS = (None, "empty", "document", "iframe", "image", "script")
PURPOSES = (None, "prefetch", "prefetch;prerender")
ACCEPTS = (None, "*/*", "text/html,*/*;q=0.8", "text/event-stream")
OWN = "the service's own"
ORIGINS = (
    *(None, OWN, LISTED, IPV6),
    *("null", "", "https://example.or", "https://example.org.evil", "https://evil.example.org"),
    *("https://evilexample.org", "https://example.org:443", "https://example.org:8443"),
    *("http://example.org", "HTTPS://EXAMPLE.ORG", "https://example.org/", "*"),
    *(f"{LISTED}, {LISTED}", f"{LISTED} https://evil.org", "https://examplexorg"),
    *("http://1:8765", "http://[::1]:87650", "http://[::2]:8765", "http://[::1]"),
)


@dataclass(frozen=True)
class Said:
    """What a request says of itself."""

    method: str
    site: str | None = None
    mode: str | None = None
    dest: str | None = None
    purpose: str | None = None
    origin: str | None = None
    accept: str | None = None

    def headers(self, own: str) -> list[tuple[str, str]]:
        named = {
            "Sec-Fetch-Site": self.site,
            "Sec-Fetch-Mode": self.mode,
            "Sec-Fetch-Dest": self.dest,
            "Sec-Purpose": self.purpose,
            "Origin": own if self.origin == OWN else self.origin,
            "Accept": self.accept,
        }
        return [(name, value) for name, value in named.items() if value is not None]


def may_start(said: Said) -> bool | None:
    """Whether such a request starts a run; None where no client says such a thing.

    Written from what was asked for, not from what was made of it.
    """
    if said.method == "HEAD":
        return False
    metadata = (said.site, said.mode, said.dest)
    browser = any(metadata)
    listed = said.origin in (LISTED, IPV6)
    # Same-origin by Sec-Fetch-Site, or a listed Origin, or no browser's that says anything else.
    foreign = said.site not in (None, "same-origin") or (
        said.site is None and said.origin not in (None, OWN)
    )
    if foreign and not listed:
        return False
    if said.method == "POST":
        return True if browser is all(metadata) else None
    # A GET: only a script's own fetch or EventSource; without metadata, what asks for events.
    if said.purpose is not None:
        return False
    if said.dest not in (None, "empty") or said.mode not in (None, "cors", "same-origin"):
        return False
    if not browser:
        return said.accept == "text/event-stream"
    return True if all(metadata) else None


def exchange(
    connection: HTTPConnection,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    body: bytes | None = None,
) -> Response:
    """One request of just these headers, and Host, on a connection that is kept."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return Response(answer.status, answer.headers, answer.read())


def shares(answer: Response, origin: str | None, routed: bool = True) -> str | None:
    """What is wrong with who may read this answer, None if nothing is.

    That there is nothing at an address (not `routed`) need not be told to anybody.
    """
    fields = answer.headers
    if "Origin" not in [name.strip() for name in (fields.get("Vary") or "").split(",")]:
        return "no Vary: Origin"
    given = fields.get_all("Access-Control-Allow-Origin") or []
    if origin in (LISTED, IPV6) and (routed or given):
        good = given == [origin] and fields["Access-Control-Allow-Credentials"] == "true"
    else:
        good = not any(name.lower().startswith("access-control-") for name in fields)
    return None if good else f"is shared with {given}"


def combinations() -> Iterator[Said]:
    for parts in itertools.product(SITES, MODES, DESTS, PURPOSES, ORIGINS, ACCEPTS):
        site, mode, dest, purpose, origin, accept = parts
        # All that may start a run; of the others a sample, in which every pair of values occurs.
        said = Said("GET", site, mode, dest, purpose, origin, accept)
        if may_start(said) is False and hash_of(*parts) % 30:
            continue
        yield said
        if hash_of(*parts) % 20 == 0:
            yield Said("HEAD", site, mode, dest, purpose, origin, accept)
    kinds = ((None, None), ("cors", "empty"), ("no-cors", "empty"), ("navigate", "iframe"))
    for site, origin, (mode, dest) in itertools.product(SITES, ORIGINS, kinds):
        yield Said("POST", site, mode, dest, None, origin)


def hash_of(*parts: object) -> int:
    """The same in every process, as `hash` of a text is not."""
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:4])


@pytest.mark.timeout(300)
def test_every_combination_of_headers_does_what_was_asked_for(
    site: Server, provider: Provider
) -> None:
    provider.script = Script(["yes"])
    connection = HTTPConnection(urlsplit(site.url).netloc)
    wrong: list[object] = []
    expected: set[str] = set()
    allowed: set[str] = set()
    count = 0
    for count, said in enumerate(combinations(), 1):
        may = may_start(said)
        name = f"q{count}"
        body = json.dumps({"question": name}).encode() if said.method == "POST" else None
        target = "/stream_chat" if body else f"/stream_chat?question={name}"
        answer = exchange(connection, said.method, target, said.headers(site.url), body)
        refusal = 405 if said.method == "HEAD" else 403
        if may:
            expected.add(name)
            good = answer.status == 200
        elif may is None:
            allowed.add(name)
            good = answer.status in (200, 403)
        else:
            good = answer.status == refusal
        trouble = shares(answer, said.origin)
        if not good or trouble:
            wrong.append((answer.status, trouble, said))
    connection.close()
    assert count > 2000
    assert len(expected) > 50
    assert wrong[:10] == [], f"{len(wrong)} of {count}"
    calls = asked(provider, site)
    assert len(calls) == len(set(calls))
    assert expected <= set(calls) <= expected | allowed


def test_a_program_that_names_its_mode_is_no_page(site: Server, provider: Provider) -> None:
    # Node's own fetch, and what EventSources are made of there.
    headers = {"Accept": "text/event-stream", "Sec-Fetch-Mode": "cors"}
    listened = request("GET", f"{site.url}/stream_chat?question=listened", headers=headers)
    posted = request(
        "POST",
        f"{site.url}/stream_chat",
        json={"question": "posted"},
        headers={"Sec-Fetch-Mode": "cors"},
    )
    assert (listened.status, posted.status) == (200, 200)
    assert asked(provider, site) == ["listened", "posted"]


def test_old_names_of_a_prefetch_are_known(site: Server, provider: Provider) -> None:
    for name, value in (("Purpose", "prefetch"), ("X-Moz", "prefetch"), ("X-Purpose", "preview")):
        for metadata in ({}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}):
            answer = request(
                "GET",
                f"{site.url}/stream_chat?question=prefetched",
                headers={"Accept": "*/*", "Sec-Fetch-Site": "same-origin", name: value, **metadata},
            )
            assert answer.status == 403, (name, metadata)
    assert asked(provider, site) == []


CROSS = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.org"}
SCRIPT = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Accept": "*/*"}


def test_a_token_comes_from_anywhere_and_a_password_does_not(
    site: Server, provider: Provider
) -> None:
    key = {"Authorization": f"Bearer {API_KEY}"}
    url = f"{site.url}/stream_chat"
    good = request("POST", url, json={"question": "key"}, headers=CROSS | key)
    read = request("GET", f"{url}?question=get", headers=CROSS | SCRIPT | key)
    assert (good.status, read.status) == (200, 200)
    # Browsers add these by themselves, once somebody has signed in to what stands before us.
    for ambient in ("Basic dXNlcjpwYXNzd29yZA==", "Negotiate YII=", "Digest username=x"):
        given = CROSS | {"Authorization": ambient}
        posted = request("POST", url, json={"question": "no"}, headers=given)
        listened = request("GET", f"{url}?question=no", headers=given | SCRIPT)
        assert (posted.status, listened.status) == (403, 403), ambient
    for false in ("Bearer fsk_false", "Bearer fsk_", f"Bearer {API_KEY}x"):
        given = CROSS | SCRIPT | {"Authorization": false}
        assert request("GET", f"{url}?question=no", headers=given).status == 401
        assert request("POST", url, json={"question": "no"}, headers=given).status == 401
    image = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert request("GET", f"{url}?question=no", headers=CROSS | image | key).status == 403
    assert asked(provider, site) == ["key", "get"]


@pytest.mark.parametrize("ambient", ["Basic dXNlcjpwYXNzd29yZA==", "Negotiate YII=", "x"])
def test_a_browsers_own_credentials_excuse_no_foreign_page(
    ambient: str, site: Server, provider: Provider
) -> None:
    provider.script = Script(["still ", "here"], gated=True)
    cookie = request("GET", f"{site.url}/").headers["Set-Cookie"].partition(";")[0]
    own = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
    body = {"chain": "chat", "input": "Go on"}
    run = request("POST", f"{site.url}/runs", json=body, headers=own).json()
    conversation = f"{site.url}/conversations/{run['conversation']}"
    foreign = {
        "Cookie": cookie,
        "Sec-Fetch-Site": "same-site",
        "Origin": "http://127.0.0.1:1",
        "Authorization": ambient,
    }
    tried = [
        request("POST", f"{site.url}/runs/{run['run']}/cancel", headers=foreign),
        request("PATCH", conversation, json={"title": "mine"}, headers=foreign),
        request("DELETE", conversation, headers=foreign),
        request("POST", f"{site.url}/tickets", json={"chain": "chat"}, headers=foreign),
    ]
    assert [answer.status for answer in tried] == [403] * 4
    still = request("GET", f"{site.url}/runs/{run['run']}", headers=own)
    assert still.json()["status"] == "running"
    provider.release()
    assert asked(provider, site) == ["Go on"]


@pytest.mark.parametrize(
    "name", ["Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Origin", "Accept"]
)
def test_a_header_sent_twice_or_under_another_spelling_opens_nothing(
    name: str, site: Server, provider: Provider
) -> None:
    bad = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    bad |= {"Origin": "https://evil.org", "Accept": "image/*"}
    good = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    good |= {"Origin": LISTED, "Accept": "text/event-stream"}
    # All is well but for this one; of which the good one comes first, last, or misspelt.
    others = [pair for pair in good.items() if pair[0] != name]
    if name == "Accept":  # decides only where there are no metadata
        others = [pair for pair in others if not pair[0].startswith("Sec-")]
    if name == "Sec-Fetch-Site":
        others = [pair for pair in others if pair[0] != "Origin"]
    if name == "Origin":
        others = [pair for pair in others if pair[0] != "Sec-Fetch-Site"]
    spelt = name.replace("-", "_") if "-" in name else name + "_"
    for spelling in (
        [(name, bad[name]), (name, good[name])],
        [(name, good[name]), (name, bad[name])],
        [(name, bad[name]), (spelt, good[name])],
        [(spelt, good[name]), (name, bad[name])],
    ):
        # An Accept that has both is one that has it: the second name alone is to be nothing.
        if name == "Accept" and spelling[0][0] == spelling[1][0]:
            continue
        connection = HTTPConnection(urlsplit(site.url).netloc)
        answer = exchange(connection, "GET", "/stream_chat?question=twice", [*others, *spelling])
        connection.close()
        assert answer.status in (400, 403), spelling
    assert asked(provider, site) == []


# Who may read


def everywhere(site: Server) -> list[tuple[str, str, dict[str, str]]]:
    """Every kind of answer."""
    run = request("POST", f"{site.url}/runs", json={"chain": "chat", "input": "x"}).json()["run"]
    with Stream(f"{site.url}/runs/{run}/events") as stream:
        last = list(stream.events())[-1].id
    return [
        ("GET", "/", {}),
        ("GET", "/nothing-here", {}),
        ("GET", "/health/live", {}),
        ("GET", "/health/ready", {}),
        ("GET", "/openapi.json", {}),
        ("GET", "/static/stream/stream.js", {}),
        ("GET", "/static/stream/nothing.js", {}),
        ("GET", f"/runs/{run}", {}),
        ("GET", f"/runs/{run}/events", {}),
        ("GET", f"/runs/{run}/events", {"Last-Event-ID": last}),
        ("GET", f"/runs/{run}/events", {"Last-Event-ID": "no cursor"}),
        ("GET", f"/runs/{'0' * 32}", {}),
        ("GET", f"/runs/{run}/cancel", {}),
        ("GET", "/conversations", {}),
        ("GET", f"/conversations/{'0' * 32}", {}),
        ("GET", "/stream_chat?question=x", {"Sec-Fetch-Dest": "image"}),
        ("GET", "/stream_nothing?question=x", {}),
        ("GET", "/stream_chat", {"Authorization": "Bearer fsk_false"}),
        ("HEAD", "/stream_chat?question=x", {}),
        ("HEAD", "/", {}),
        ("POST", "/runs", {}),
        ("POST", "/runs", {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/runs", {"Content-Type": "application/json", "Content-Length": "99999999"}),
        ("POST", "/tickets", {"Content-Type": "text/plain"}),
        ("POST", "/", {}),
        ("DELETE", "/runs", {}),
        ("TRACE", "/runs", {}),
        ("OPTIONS", "/runs", {}),
        ("OPTIONS", "/stream_chat", {"Access-Control-Request-Method": "POST"}),
        ("GET", "//", {}),
        ("GET", "/runs/", {}),
        ("GET", "/stream_chat/", {}),
    ]


def head(site: Server, method: str, path: str, headers: dict[str, str]) -> Response:
    """An answer, without a body that may never end."""
    sent = {"Accept": "*/*", **headers}
    with Stream(f"{site.url}{path}", method=method, headers=sent) as stream:
        return Response(stream.status, stream.headers, b"")


def test_every_answer_says_who_may_read_it(site: Server, provider: Provider) -> None:
    wrong = [
        (method, path, answer.status, trouble)
        for method, path, headers in everywhere(site)
        for origin in (None, LISTED, IPV6, "https://evil.org", "null")
        for answer in [head(site, method, path, headers | ({"Origin": origin} if origin else {}))]
        if (trouble := shares(answer, origin, routed=answer.status not in (404, 405)))
    ]
    assert wrong == []


def preflight(site: Server, path: str, origin: str, headers: str, method: str = "POST") -> Response:
    return request(
        "OPTIONS",
        f"{site.url}{path}",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


@pytest.mark.parametrize("path", ["/stream_chat", "/runs", f"/runs/{'0' * 32}/events", "/tickets"])
def test_a_preflight_allows_what_is_needed_and_no_more(path: str, site: Server) -> None:
    answer = preflight(site, path, LISTED, "last-event-id,content-type,authorization,x-other")
    assert answer.status in (200, 204)
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert sorted(allowed) == ["authorization", "content-type", "last-event-id"]
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    for origin in ORIGINS:
        if origin in (None, "", OWN):
            continue
        told = preflight(site, path, origin, "content-type")
        assert shares(told, origin) is None, origin


def test_with_no_origins_only_our_own_pages_ask(provider: Provider) -> None:
    env = environment(model="openai:scripted", OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="test")
    with Server(gunicorn(), env) as server:
        for origin in (LISTED, "null", "*", "http://localhost", "http://127.0.0.1"):
            for site in ("cross-site", "same-site", None):
                headers = {"Origin": origin} | ({"Sec-Fetch-Site": site} if site else {})
                body = {"question": "no"}
                told = request("POST", f"{server.url}/stream_chat", json=body, headers=headers)
                assert (told.status, shares(told, None)) == (403, None), headers
        assert asked(provider, server) == []


# Everybody's


@pytest.fixture(scope="module")
def _everybodys(_provider: Provider) -> Iterator[Server]:
    env = environment(origins="*", OPENAI_BASE_URL=_provider.url)
    with Server(gunicorn(app="tests.public:app"), env) as server:
        yield server


@pytest.fixture
def everybodys(_everybodys: Server, provider: Provider) -> Server:
    """`STREAM_ORIGINS=*`, a chain that is public, and one that is not."""
    return _everybodys


def test_any_page_asks_a_public_chain_and_no_other(everybodys: Server, provider: Provider) -> None:
    where = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.org"}
    for chain, status in (("open", 200), ("chat", 403)):
        url = f"{everybodys.url}/stream_{chain}"
        runs = f"{everybodys.url}/runs"
        asked_runs = {"chain": chain, "input": f"{chain} by runs"}
        answers = [
            request("GET", f"{url}?question={chain}-get", headers=where | SCRIPT),
            request("POST", url, json={"question": f"{chain} by post"}, headers=where),
            request("POST", runs, json=asked_runs, headers=where),
        ]
        assert [a.status for a in answers] == ([200, 200, 201] if status == 200 else [403] * 3)
        for answer in answers:
            assert answer.headers.get_all("Access-Control-Allow-Origin") == ["*"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
        image = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert request("GET", f"{url}?question=image", headers=where | image).status == 403
    calls = [call.question for call in provider.calls]
    assert sorted(calls) == ["open by post", "open by runs", "open-get"]


def test_a_preflight_of_anybody_gets_no_credentials(everybodys: Server) -> None:
    answer = preflight(everybodys, "/stream_open", "https://evil.org", "content-type")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_that_any_page_may_ask_is_said_at_start(everybodys: Server) -> None:
    said = [line for line in everybodys.log.splitlines() if "STREAM_ORIGINS is *" in line]
    assert [json.loads(line)["level"] for line in said] == ["WARNING"]


@browsers
def test_any_page_asks_a_public_chain_in_a_browser(
    visitor: BrowserContext, pages: Pages, everybodys: Server, provider: Provider
) -> None:
    page = visitor.new_page()
    page.goto(pages.origin("foreign.localhost"))
    read = {
        chain: page.evaluate(
            READ,
            {
                "url": f"{everybodys.url}/stream_{chain}?format=text&question={chain}",
                "credentials": credentials,
            },
        )
        for chain, credentials in (("open", False), ("chat", False))
    }
    assert read["open"] == {"said": "Hello world", "opened": 1}
    assert read["chat"] == {"said": "", "opened": 0, "refused": True}
    refused = page.evaluate(
        READ, {"url": f"{everybodys.url}/stream_open?question=cookies", "credentials": True}
    )
    assert refused == {"said": "", "opened": 0, "refused": True}
    for name, vector in MARKUP.items():
        attempt(page, vector, everybodys.url, f"everybodys-{name}", "/stream_open")
    questions = {call.question for call in provider.calls}
    assert questions - {"cookies"} == {"open"}


@pytest.mark.parametrize(
    "setting",
    ["example.org", "https://example.org/", "https://*.example.org", "null", "HTTPS://EXAMPLE.ORG"],
)
def test_what_is_no_origin_is_told_at_start(setting: str, provider: Provider) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import tests.public"],
        env=environment(origins=setting, OPENAI_BASE_URL=provider.url),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "STREAM_ORIGINS" in ended.stderr


# Raw


def raw(server: Server, *lines: bytes, body: bytes = b"") -> bytes:
    """The whole answer to just these bytes."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as sock:
        sock.sendall(b"\r\n".join([*lines, b"Host: " + parts.netloc.encode(), b"", b""]) + body)
        sock.settimeout(10)
        answer = b""
        while piece := _receive(sock):
            answer += piece
            head, end, rest = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
            if end and (length is None or len(rest) >= int(length[1])):
                break
        return answer


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:  # it was said while the rest was still being sent
        return b""


def status_of(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert match, answer
    return int(match[1])


CURSORS = {
    "comma": b"%s:1,%s:2",
    "NUL": b"%s:1\x00",
    "bare CR": b"%s:1\rX-Forged: 1",
    "nine kilobytes": b"%s:1" + b"1" * 9000,
    "unicode digits": "%s:\u0661".encode(),
    "superscript": "%s:\u00b2".encode(),
    "full width": "%s:\uff11".encode(),
    "leading zeros": b"%s:01",
    "negative": b"%s:-1",
    "plus": b"%s:+1",
    "huge": b"%s:" + b"9" * 40,
    "fraction": b"%s:1.0",
    "exponent": b"%s:1e1",
    "hexadecimal": b"%s:0x1",
    "inner space": b"%s: 1",
    "two colons": b"%s::1",
    "no number": b"%s:",
    "no run": b":1",
    "path": b"../../%s:1",
    "short run": b"abc:1",
    "long run": b"a" * 65 + b":1",
    "run in unicode": "%sé:1".encode(),
    "underscore digits": b"%s:1_0",
    "JSON": b'{"run": "%s", "seq": 1}',
}


@pytest.fixture(scope="module")
def run(_site: Server) -> bytes:
    """A run that is over."""
    body = {"chain": "chat", "input": "over"}
    made: str = request("POST", f"{_site.url}/runs", json=body).json()["run"]
    with Stream(f"{_site.url}/runs/{made}/events") as stream:
        stream.read()
    return made.encode()


@pytest.mark.parametrize("name", CURSORS)
def test_a_strange_cursor_is_refused(
    name: str, site: Server, provider: Provider, run: bytes
) -> None:
    cursor = CURSORS[name].replace(b"%s", run)
    query = quote(cursor).encode()
    for path in (b"/stream_chat?question=x", b"/runs/" + run + b"/events?x=1"):
        tried = [
            raw(
                site,
                b"GET " + path + b" HTTP/1.1",
                b"Accept: text/event-stream",
                b"Last-Event-ID: " + cursor,
            ),
            raw(
                site,
                b"GET " + path + b"&after=" + query + b" HTTP/1.1",
                b"Accept: text/event-stream",
            ),
        ]
        for answer in tried:
            assert 400 <= status_of(answer) < 500, answer
            assert b"forged" not in answer.partition(b"\r\n\r\n")[0].lower()
    assert asked(provider, site) == []


def test_cursors_that_contradict_each_other_are_refused(
    site: Server, provider: Provider, run: bytes
) -> None:
    one, two = b"Last-Event-ID: " + run + b":1", b"Last-Event-ID: " + run + b":2"
    for path in (b"/stream_chat?question=x", b"/runs/" + run + b"/events"):
        for lines in ([one, two], [two, one], [one, one], [one, b"last-event-id: x"]):
            line = b"GET " + path + b" HTTP/1.1"
            answer = raw(site, line, b"Accept: text/event-stream", *lines)
            assert status_of(answer) == 400, lines
        # A folded header was allowed, once.
        folded = raw(site, line, b"Accept: text/event-stream", b"Last-Event-ID: " + run, b" :1")
        assert status_of(folded) == 400
    other = b"Last-Event-ID: " + b"0" * 32 + b":1"
    line = b"GET /stream_chat?question=x HTTP/1.1"
    assert status_of(raw(site, line, b"Accept: text/event-stream", other)) == 404
    assert asked(provider, site) == []


FORGED = "\r\nSet-Cookie: forged=1\r\nX-Forged: 1"
SPELT = {
    "percent": quote(FORGED),
    "LF": quote(FORGED.replace("\r", "")),
    "CR": quote(FORGED.replace("\n", "")),
    "NEL": quote(FORGED.replace("\r\n", "\x85")),
    "line separator": quote(FORGED.replace("\r\n", "\u2028")),
    # Some servers took the last byte of these for a line end.
    "narrowed": quote(FORGED.replace("\r", "\u560d").replace("\n", "\u560a")),
    "NUL": "%00" + quote(FORGED),
}


@pytest.mark.parametrize("spelling", SPELT)
def test_no_id_puts_a_header_into_an_answer(
    spelling: str, site: Server, provider: Provider, run: bytes
) -> None:
    text = SPELT[spelling]
    known = run.decode()
    targets = [
        *(f"/runs/{known}{text}", f"/runs/{text}", f"/runs/{known}{text}/events"),
        *(f"/stream_chat{text}?question=x", f"/conversations/{known}{text}"),
        *(f"/conversations?before={text}", f"/conversations?limit=1{text}"),
        f"/static/stream/{text}",
        *(
            f"/stream_chat?question=x&{field}={known}{text}"
            for field in ("run", "conversation", "parent", "multitask", "format", "ticket")
        ),
    ]
    for target in targets:
        line = f"GET {target} HTTP/1.1".encode()
        answer = raw(site, line, b"Accept: text/event-stream")
        assert 400 <= status_of(answer) < 500, (target, answer)
        assert not re.search(rb"\n(set-cookie|x-forged):", answer.lower()), target
    for field in ("run", "conversation", "parent", "multitask"):
        body = {"chain": "chat", "input": "x", field: f"{known}{FORGED}"}
        told = request("POST", f"{site.url}/runs", json=body)
        assert told.status in (400, 404), field
        assert "X-Forged" not in told.headers
    assert asked(provider, site) == []


LONG = b"9" * 9000
HOSTILE: dict[str, list[bytes]] = {
    "long value": [b"X-Long: " + LONG],
    "long name": [LONG + b": 1"],
    "long cookie": [b"Cookie: stream_session=" + LONG],
    "long origin": [b"Origin: https://" + LONG],
    "many headers": [b"X-%d: 1" % number for number in range(200)],
    "NUL in a value": [b"X-Nul: a\x00b"],
    "NUL in a name": [b"X-N\x00ul: a"],
    "LF alone": [b"X-Lf: a\nX-Forged: 1\x00"],
    "CR alone": [b"X-Cr: a\rX-Forged: 1"],
    "no colon": [b"X-None"],
    "space before the colon": [b"X-Space : 1"],
    "no name": [b": 1"],
    "two lengths": [b"Content-Length: 1", b"Content-Length: 2"],
    "length and chunks": [b"Content-Length: 1", b"Transfer-Encoding: chunked"],
    "negative length": [b"Content-Length: -1"],
    "no length": [b"Content-Length: x"],
    "unknown coding": [b"Transfer-Encoding: gzip"],
    "two hosts": [b"Host: evil.org"],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_hostile_headers_are_refused_and_the_service_goes_on(
    name: str, method: bytes, site: Server, provider: Provider
) -> None:
    lines = HOSTILE[name]
    if method == b"POST":
        lines = [*lines, b"Content-Type: application/json"]
    # From another site: what the server lets pass is refused by ours.
    answer = raw(
        site,
        method + b" /stream_chat?question=hostile HTTP/1.1",
        b"Accept: text/event-stream",
        b"Sec-Fetch-Site: cross-site",
        *lines,
    )
    status = status_of(answer)
    assert 400 <= status < 500 or (status == 501 and name == "unknown coding"), answer
    assert asked(provider, site) == []


def test_nothing_that_was_refused_is_an_error_of_ours(site: Server) -> None:
    """Runs last: what all of the above has left in the log."""
    deadline = time.monotonic() + 10
    ask(site, "the last question")
    while "seen POST /stream_chat []" not in site.log and time.monotonic() < deadline:
        time.sleep(0.05)
    wrong: list[Any] = []
    for line in site.log.splitlines():
        said = json.loads(line)
        if said["level"] in ("ERROR", "CRITICAL") or re.search(r" 5\d\d$", said["message"]):
            wrong.append(said)
    assert [said for said in wrong if not said["message"].endswith(" 501")] == []
