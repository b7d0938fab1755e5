"""The browser client when it is refused: what it asks for, how often, and what a person is told.

The page's clock stands still in most of these tests and is moved by hand, so that a wait of
minutes takes no time and a request that comes too soon is seen.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from . import chromium
from .chromium import PATIENCE, ask, log, reaches, run_ids, says, visit
from .provider import Provider, Script
from .proxy import Proxy
from .server import Server, environment, gunicorn

site, browser, complaints, page = (
    chromium.site,
    chromium.browser,
    chromium.complaints,
    chromium.page,
)
pytestmark = chromium.needed

FULL = "You have too many streams open."
RELOAD = "Reload this page to sign in again."
#: One refused read: an `EventSource`, which is not told why, and a `fetch`, which is.
ONE = ["eventsource", "fetch"]
#: More than any wait of the client's.
LONG = 10 * 60_000


def problem(status: int, detail: str | None, retry_after: int | None) -> dict[str, Any]:
    """What a route is fulfilled with: a problem document."""
    document: dict[str, Any] = {"type": "about:blank", "title": "No", "status": status}
    if detail is not None:
        document["detail"] = detail
    return {
        "status": status,
        "content_type": "application/problem+json",
        "headers": {} if retry_after is None else {"Retry-After": str(retry_after)},
        "body": json.dumps(document),
    }


class Reads:
    """An answer that is cut off after two words; from then on its reads may be refused."""

    def __init__(self, page: Page, proxy: Proxy, provider: Provider) -> None:
        self.page = page
        self.asked: list[str] = []  # each request for events, by what has made it
        self.urls: list[str] = []
        self._provider = provider
        self._refusal: dict[str, Any] | None = None
        provider.script = Script(["One ", "two ", "three."], gated=True)
        page.clock.install()
        visit(page, proxy.url)
        ask(page, "Count.")
        provider.allow(2)
        says(page, "One two")
        page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
        page.route("**/events*", self._answer)
        self._proxy = proxy

    def _answer(self, route: Route) -> None:
        self.asked.append(route.request.resource_type)
        self.urls.append(route.request.url)
        if self._refusal is None:
            route.continue_()
        else:
            route.fulfill(**self._refusal)

    def cut(self) -> None:
        assert self._proxy.cut() >= 1

    def refuse(
        self, status: int, detail: str | None = None, retry_after: int | None = None
    ) -> None:
        """Cut the connection, and refuse every other."""
        self._refusal = problem(status, detail, retry_after)
        self.cut()
        self.wait(ONE)

    def send_away(self, seconds: int) -> None:
        """Cut the connection, and tell the next one to come back later."""
        block = f'event: reconnect\nretry: {seconds}000\ndata: {{"after":{seconds}}}\n\n'
        self._refusal = {"content_type": "text/event-stream", "body": block}
        self.cut()

    def allow(self) -> None:
        self._refusal = None

    def wait(self, asked: list[str]) -> None:
        """Until these are all the requests that were made."""
        until(self.page, lambda: len(self.asked) >= len(asked))
        self.settle()
        assert self.asked == asked

    def settle(self) -> None:
        """Until whatever the page has asked for by now has been answered."""
        self.page.wait_for_load_state("load")
        self.page.evaluate("() => fetch('/health/live').then(({ ok }) => ok)")

    def forward(self, milliseconds: int) -> None:
        self.page.clock.fast_forward(milliseconds)
        self.settle()

    def stir(self) -> None:
        """What makes the client look at once whether it is still connected."""
        self.page.evaluate(
            """() => {
                document.dispatchEvent(new Event("visibilitychange"));
                window.dispatchEvent(new Event("online"));
            }"""
        )
        self.settle()

    def is_quiet(self) -> None:
        """Whatever happens, and however long one waits, nothing more is asked for."""
        before = list(self.asked)
        for _ in range(3):
            self.forward(LONG)
            self.stir()
        assert self.asked == before

    def fails(self, words: str) -> None:
        """The last word on the page; what was said before it stays."""
        expect(self.page.locator(".failure")).to_have_text(words, timeout=PATIENCE)
        reaches(self.page, "failed")
        says(self.page, "One two")
        expect(self.page.get_by_text(f"Reference: {run_ids(self.page)[0]}")).to_be_visible()
        expect(self.page.get_by_role("button", name="Stop")).to_be_hidden()

    def goes_on(self) -> None:
        """The rest of the answer comes, from where it was, and nobody was asked again."""
        self.page.clock.resume()
        reaches(self.page, "answering")
        assert re.search(r"/events\?after=[1-9]\d*$", self.urls[-1])
        self._provider.release()
        reaches(self.page, "done")
        says(self.page, "One two three.")
        assert len(self._provider.calls) == 1


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Lets the browser go on until something is so."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


@pytest.fixture
def reads(page: Page, site: Server, provider: Provider) -> Iterator[Reads]:
    with Proxy(urlsplit(site.url).port or 80) as proxy:
        yield Reads(page, proxy, provider)


# Sent away by a worker that stops


def test_who_is_sent_away_comes_back_when_it_was_told_to(reads: Reads) -> None:
    reads.send_away(60)
    reads.wait(["eventsource"])
    reaches(reads.page, "reconnecting")
    reads.forward(59_900)
    assert reads.asked == ["eventsource"]
    reads.allow()
    reads.forward(1_000)
    reads.wait(["eventsource"] * 2)
    reads.goes_on()


def test_a_bare_event_source_resumes(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(["One ", "two ", "three."], gated=True)
    with Proxy(urlsplit(site.url).port or 80) as proxy:
        visit(page, proxy.url)
        page.evaluate(
            """() => {
                window.seen = [];
                const source = new EventSource("/stream_chat?question=Count.");
                source.onmessage = ({ data }) => seen.push(JSON.parse(data).content);
                source.addEventListener("end", () => { source.close(); seen.push("end"); });
            }"""
        )
        provider.allow(2)
        until(page, lambda: page.evaluate("seen") == ["One ", "two "])
        assert proxy.cut() >= 1
        provider.release()
        until(page, lambda: "end" in page.evaluate("seen"))
    assert page.evaluate("seen") == ["One ", "two ", "three.", "end"]
    assert len(provider.calls) == 1


# Refused in mid-answer


@pytest.mark.parametrize("status", [429, 503])
def test_a_limit_is_waited_out(reads: Reads, status: int) -> None:
    reads.refuse(status, FULL, 7)
    told = reads.page.get_by_role("status")
    expect(told).to_have_text(f"{FULL} Trying again in 7 seconds…")
    reads.forward(7_900)  # seven seconds, and at least one more so that not all come at once
    reads.stir()
    assert reads.asked == ONE
    reads.forward(1_200)
    reads.wait(ONE * 2)
    expect(told).to_have_text(f"{FULL} Trying again in 7 seconds…")
    reads.forward(8_900)  # the second time it is two more
    assert reads.asked == ONE * 2
    reads.allow()
    reads.forward(2_200)
    reads.wait([*ONE, *ONE, "eventsource"])
    reads.goes_on()


def test_refusals_in_a_row_end_with_a_clear_word(reads: Reads) -> None:
    reads.refuse(429, FULL, 7)
    for count in range(2, 6):
        reads.forward(60_000)
        reads.wait(ONE * count)
    reads.fails(f"{FULL} Try again in 7 seconds.")
    reads.is_quiet()
    reads.allow()
    reads.page.get_by_role("button", name="Try again").click()
    reads.goes_on()
    expect(reads.page.locator(".failure")).to_be_hidden()
    expect(reads.page.locator(".reference")).to_be_hidden()
    assert reads.asked == [*ONE * 5, "eventsource"]


def test_refusals_are_counted_from_the_last_stream_that_opened(reads: Reads) -> None:
    reads.refuse(503, FULL, 1)
    for count in range(2, 5):
        reads.forward(60_000)
        reads.wait(ONE * count)
    reads.allow()
    reads.forward(60_000)
    reads.wait([*ONE * 4, "eventsource"])
    reaches(reads.page, "answering")
    reads.asked.clear()
    reads.refuse(503, FULL, 1)
    for count in range(2, 5):
        reads.forward(60_000)
        reads.wait(ONE * count)
    reaches(reads.page, "reconnecting")
    reads.allow()
    reads.forward(60_000)
    reads.goes_on()


def test_refusals_without_a_word_end_as_well(reads: Reads) -> None:
    reads.refuse(500)
    for count in range(2, 6):
        reads.forward(60_000)
        reads.wait(ONE * count)
    reads.fails("The rest of the answer cannot be read right now. Try again in a while.")
    reads.is_quiet()


def test_nobody_is_kept_waiting_for_hours(reads: Reads) -> None:
    reads.refuse(429, "Today's tokens are used up.", 7_200)
    reads.fails("Today's tokens are used up. Try again in 2 hours.")
    expect(reads.page.get_by_role("button", name="Try again")).to_be_visible()
    reads.is_quiet()
    assert reads.asked == ONE


def test_a_gateway_without_a_server_is_the_network(reads: Reads) -> None:
    reads.refuse(502)
    for count in range(2, 9):
        reads.forward(30_000)
        reads.wait(ONE * count)
    reaches(reads.page, "reconnecting")
    reads.forward(14_000)  # half of the longest wait is the least by now
    assert reads.asked == ONE * 8
    reads.allow()
    reads.forward(30_000)
    reads.wait([*ONE * 8, "eventsource"])
    reads.goes_on()


def test_a_refusal_that_has_passed_when_it_is_asked_for(reads: Reads) -> None:
    """The `fetch` finds an open door: the stream is read by an `EventSource` all the same."""
    refused = problem(429, FULL, 7)

    def once(route: Route) -> None:
        reads.asked.append(route.request.resource_type)
        route.fulfill(**refused)

    reads.page.route("**/events*", once, times=1)
    reads.cut()
    reads.wait(ONE)
    reads.forward(600)
    reads.wait([*ONE, "eventsource"])
    # The door was not left open behind it.
    ready = urljoin(reads.urls[0], "/health/ready")
    until(reads.page, lambda: reads.page.request.get(ready).json()["open_streams"] == 1)
    reads.goes_on()


@pytest.mark.parametrize(
    ("status", "detail", "words"),
    [
        (401, "The sign-in has ended.", f"The sign-in has ended. {RELOAD}"),
        (401, None, f"Your sign-in has ended. {RELOAD}"),
        (403, "This site's pages may not ask here.", "This site's pages may not ask here."),
        (403, None, "This answer may no longer be read."),
    ],
)
def test_a_refusal_for_good_ends_at_once(
    reads: Reads, status: int, detail: str | None, words: str
) -> None:
    reads.refuse(status, detail)
    reads.fails(words)
    expect(reads.page.get_by_role("button", name="Try again")).to_be_hidden()
    reads.is_quiet()
    assert reads.asked == ONE


def test_what_is_gone_can_be_asked_anew(reads: Reads, provider: Provider) -> None:
    reads.refuse(404, "There is no such run.")
    reads.fails("This answer is no longer kept.")
    reads.is_quiet()
    reads.allow()
    provider.release()  # it was not really gone, and is in the way of the next until it ends
    provider.script = Script(["Anew."])
    status, _, _ = reads.urls[0].partition("/events")
    until(reads.page, lambda: reads.page.request.get(status).json()["status"] == "done")
    reads.page.clock.resume()
    reads.page.get_by_role("button", name="Try again").click()
    reaches(reads.page, "done")
    says(reads.page, "Anew.")
    assert len(provider.calls) == 2


def test_a_person_can_quote_the_run(reads: Reads) -> None:
    reads.refuse(403)
    run = run_ids(reads.page)[0]
    reads.page.locator(".reference code").click()
    assert reads.page.evaluate("String(getSelection())") == run


# Told in the stream


def test_a_stream_says_that_the_sign_in_has_ended(
    page: Page, site: Server, provider: Provider
) -> None:
    asked: list[str] = []

    def scripted(route: Route) -> None:
        asked.append(route.request.resource_type)
        text = log(
            route.request.url.split("/")[-2],
            ("start", {"input": {"question": "Who am I?"}, "parent": None}),
            ("chunk", {"content": "You are", "message": "m", "kind": "text"}),
        )
        last = {"code": "unauthorized", "message": "The token has expired."}
        text += f"event: unauthorized\ndata: {json.dumps(last)}\n\n"
        route.fulfill(content_type="text/event-stream", body=text)

    page.route("**/events*", scripted)
    page.clock.install()
    visit(page, site.url)
    ask(page, "Who am I?")
    reaches(page, "failed")
    says(page, "You are")
    expect(page.locator(".failure")).to_have_text(f"The token has expired. {RELOAD}")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    page.clock.fast_forward(LONG)
    page.evaluate("() => fetch('/health/live').then(({ ok }) => ok)")
    assert asked == ["eventsource"]


def test_who_signs_out_is_told_in_mid_answer(
    page: Page, provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script(["Dear ", "Ada, "], stall=2)
    env = environment(
        page="true",
        recheck=0.3,
        OPENAI_BASE_URL=provider.url,
        USERS_AUTH="own",
        USERS_FOLDER=tmp_path,
    )
    with Server(gunicorn(app="tests.users:app"), env) as server:
        page.request.post(f"{server.url}/login/ada")
        visit(page, server.url)
        ask(page, "Write to me.")
        says(page, "Dear Ada,")
        page.request.post(f"{server.url}/logout/ada")
        expect(page.locator(".failure")).to_have_text(
            f"The sign-in has ended. {RELOAD}", timeout=PATIENCE
        )
        says(page, "Dear Ada,")
        ask(page, "Are you there?")
        expect(
            page.get_by_role("alert").filter(has_text="Sign in to start a run here.")
        ).to_be_visible()
        page.request.post(f"{server.url}/login/ada")
        page.reload()
        expect(page.get_by_label("Your question")).to_have_value("Are you there?")
        says(page, "Dear Ada,")
        provider.release()
        reaches(page, "done")


# Refused at the start


@pytest.mark.parametrize(
    ("status", "detail", "retry_after", "words"),
    [
        (
            429,
            "You are starting runs too often.",
            7,
            "You are starting runs too often. Try again in 7 seconds.",
        ),
        (429, None, 1, "Too many questions at once. Try again in a second."),
        (429, "Today's tokens are used up.", 30_000, "… used up. Try again in 9 hours."),
        (503, None, 600, "The service is busy. Try again in 10 minutes."),
        (401, "The sign-in has ended.", None, f"The sign-in has ended. {RELOAD}"),
        (401, None, None, f"Your sign-in has ended. {RELOAD}"),
        (403, None, None, "You may not ask questions here."),
    ],
)
def test_a_question_that_is_refused_is_asked_once_and_kept(
    page: Page,
    site: Server,
    provider: Provider,
    status: int,
    detail: str | None,
    retry_after: int | None,
    words: str,
) -> None:
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.method)
        route.fulfill(**problem(status, detail, retry_after))

    page.clock.install()
    visit(page, site.url)
    page.route("**/runs", refuse)
    ask(page, "May I?")
    reaches(page, "failed")
    told = page.get_by_role("alert").filter(has_text=words.removeprefix("… "))
    expect(told).to_be_visible()
    expect(page.get_by_label("Your question")).to_have_value("May I?")
    expect(page.locator(".turn")).to_have_count(0)
    page.clock.fast_forward(LONG)
    page.reload()
    expect(page.get_by_label("Your question")).to_have_value("May I?")
    assert asked == ["POST"]
    page.unroute("**/runs")
    page.get_by_role("button", name="Send").click()
    reaches(page, "done")
    page.reload()
    expect(page.locator(".question")).to_have_text("May I?")
    expect(page.get_by_label("Your question")).to_have_value("")


# The service's own limits


def test_limits_of_the_service_in_a_browser(page: Page, provider: Provider) -> None:
    env = environment(
        model="openai:scripted",
        model_retries=0,
        start_limit="2/hour",
        max_streams=1,
        OPENAI_BASE_URL=provider.url,
        OPENAI_API_KEY="test",
    )
    provider.scripts["Long?"] = Script(["So ", "long."], gated=True)
    with Server(gunicorn(), env) as server:
        visit(page, server.url)
        ask(page, "Long?")
        provider.allow()
        says(page, "So")
        # A second tab reads the same run: one stream too many.
        other = page.context.new_page()
        other.clock.install()
        asked: list[str] = []
        other.on(
            "request", lambda one: asked.append(one.resource_type) if "/events" in one.url else None
        )
        visit(other, server.url)
        memory = page.evaluate("sessionStorage['flask_stream:chat']")
        other.evaluate("memory => { sessionStorage['flask_stream:chat'] = memory }", memory)
        other.reload()
        expect(other.get_by_role("status")).to_have_text(
            "You have too many streams open. Trying again in 10 seconds…", timeout=PATIENCE
        )
        assert asked == ONE
        page.goto("about:blank")  # the first tab goes, and with it its stream
        ready = f"{server.url}/health/ready"
        until(other, lambda: page.request.get(ready).json()["open_streams"] == 0)
        other.clock.fast_forward(20_000)
        says(other, "So")
        provider.release()
        reaches(other, "done")
        says(other, "So long.")
        assert asked == [*ONE, "eventsource"]
        ask(other, "A second?")
        reaches(other, "done")
        ask(other, "A third?")
        told = other.get_by_role("alert").filter(
            has_text="You are starting runs too often. Try again in"
        )
        expect(told).to_have_text(re.compile(r"often\. Try again in \d+ minutes\.$"))
        expect(other.get_by_label("Your question")).to_have_value("A third?")
        assert len(provider.calls) == 2
        other.close()


# stream.js alone, as on anybody's page


def test_the_client_says_why(page: Page, site: Server, provider: Provider) -> None:
    answers = [problem(429, FULL, 7), problem(429, FULL, 7), problem(403, "No.", None)]
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.headers["accept"])
        route.fulfill(**answers[min(len(asked), len(answers)) - 1])

    page.route("**/events*", refuse)
    page.clock.install()
    visit(page, site.url)
    page.evaluate(
        """async (run) => {
            const { openRun } = await import("/static/stream/stream.js");
            window.told = [];
            const onStatus = (...all) => told.push(all);
            openRun({ url: `/runs/${run}/events`, onEvent() {}, onStatus });
        }""",
        "b" * 32,
    )
    until(page, lambda: page.evaluate("told.length") == 3)
    page.clock.fast_forward(10_000)
    until(page, lambda: page.evaluate("told.length") == 4)
    assert page.evaluate("told.map(([word, why]) => [word, why ?? null])") == [
        ["connecting", None],
        ["reconnecting", None],
        ["reconnecting", {"status": 429, "detail": FULL, "retryAfter": 7_000}],
        ["refused", {"status": 403, "detail": "No.", "retryAfter": 0}],
    ]
    assert asked == ["text/event-stream"] * 4
