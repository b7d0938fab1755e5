"""The HTTP interface, on the real server: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from httpx_sse import EventSource

from .provider import CANARY, Provider, Script
from .server import Server
from .sse import Response, ServerSentEvent, Stream, request


def start(service: Server, question: str, **fields: Any) -> dict[str, Any]:
    """Start a run; its description."""
    body = {"chain": "chat", "input": question} | fields
    response = request("POST", f"{service.url}/runs", json=body)
    assert response.status in (200, 201), response.body
    described: dict[str, Any] = response.json()
    return described


def finished(service: Server, question: str, **fields: Any) -> str:
    """Start a run and wait for its end; its id."""
    run: str = start(service, question, **fields)["run"]
    with follow(service, run) as stream:
        stream.read()
    return run


def follow(service: Server, run: str, **headers: str) -> Stream:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Stream(f"{service.url}/runs/{run}/events", headers=names)


def text(events: list[ServerSentEvent]) -> str:
    """What a native stream's chunks say."""
    return "".join(json.loads(event.data)["content"] for event in events if event.type == "message")


def data_of(events: list[ServerSentEvent], type: str) -> Any:
    return json.loads(next(e.data for e in events if e.type == type))


def ask(service: Server, chain: str = "chat", **body: Any) -> Stream:
    return Stream(
        f"{service.url}/stream_{chain}",
        method="POST",
        headers={"Content-Type": "application/json"},
        body=json.dumps(body).encode(),
    )


# Streaming


def test_the_tutorials_own_request_streams_every_event(service: Server, provider: Provider) -> None:
    provider.script = Script(["To", "kyo", "."])
    with ask(service, question="What is the capital of Japan?") as stream:
        events = list(stream.events())
    assert stream.status == 200
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert stream.headers["Cache-Control"] == "no-cache, no-transform"
    assert bytes(stream.received).startswith(b":\n\nretry: 1000\nid: ")

    kinds = [event.type for event in events]
    assert kinds == ["start", "message_start", "message", "message", "message", "usage", "end"]
    start = json.loads(events[0].data)
    assert start["input"] == {"question": "What is the capital of Japan?"}
    assert [e.id for e in events] == [f"{start['run']}:{seq}" for seq in range(1, 8)]
    chunks = [json.loads(e.data) for e in events[2:5]]
    assert chunks == [{"content": c, "message": "m1", "kind": "text"} for c in ("To", "kyo", ".")]
    assert data_of(events, "usage")["total_tokens"] > 0
    assert data_of(events, "end") == {"status": "done", "finish_reason": "stop", "error": None}
    assert stream.ended == "clean"
    assert len(provider.calls) == 1


@pytest.mark.parametrize("format", ["native", "text"])
def test_no_message_without_data_reaches_httpx_sse(
    service: Server, provider: Provider, format: str
) -> None:
    provider.script = Script(["a", "b"])
    body = {"question": "x", "format": format}
    with httpx.stream("POST", f"{service.url}/stream_chat", json=body) as response:
        events = [*EventSource(response).iter_sse()]
    assert [event.event for event in events if event.event in ("message", "end")] == [
        "message", "message", "end",
    ]  # fmt: skip
    assert all(event.data for event in events)
    assert [event.retry for event in events] == [1000] + [None] * (len(events) - 1)


def test_get_streams_too_and_its_reconnect_resumes(service: Server, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c", "d"], gated=True)
    url = f"{service.url}/stream_chat?question=letters"
    with Stream(url) as stream:
        provider.allow(2)
        events = [stream.next_event() for _ in range(4)]
        stream.reset()
    last = events[-1]
    assert last is not None
    assert last.id
    provider.allow(2)
    # A browser repeats the URL, question and all, and adds where it was.
    with Stream(url, headers={"Last-Event-ID": last.id}) as stream:
        rest = list(stream.events())
    assert text([e for e in events if e] + rest) == "abcd"
    assert data_of(rest, "end")["status"] == "done"
    with Stream(url, headers={"Last-Event-ID": rest[-1].id or ""}) as stream:
        assert stream.status == 204
    assert len(provider.calls) == 1


def test_text_dialect_is_text_and_then_the_end(service: Server, provider: Provider) -> None:
    provider.script = Script(["One\n", "two\r\nthree\u2028", " four "])
    with ask(service, question="lines", format="text") as stream:
        events = list(stream.events())
    assert [e.type for e in events] == ["message", "message", "message", "end"]
    assert [e.data for e in events] == ["One\n", "two\nthree\u2028", " four ", "done"]


def test_model_text_cannot_forge_events(service: Server, provider: Provider) -> None:
    said = "x\n\nevent: end\ndata: forged\n\nid: 1\r\rretry: 1\n\n"
    provider.script = Script(list(said))
    for format in ("native", "text"):
        with ask(service, question=f"forge {format}", format=format) as stream:
            events = list(stream.events())
        assert [e.type for e in events].count("end") == 1
        assert events[-1].type == "end"
        if format == "native":
            assert text(events) == said


def test_a_silent_model_is_bridged_by_comments(service: Server, provider: Provider) -> None:
    provider.script = Script(["late"], gated=True)
    with ask(service, question="silence") as stream:
        start = stream.next_event()
        assert start is not None
        assert start.type == "start"
        while stream.received.count(b"\n:\n") < 3:
            with pytest.raises(TimeoutError):
                stream.next_event(0.3)
        provider.allow()
        assert text(list(stream.events())) == "late"


def test_conversation_goes_on_with_what_was_said(service: Server, provider: Provider) -> None:
    provider.script = Script(["It is ", "Tokyo."])
    with ask(service, question="Capital of Japan?") as stream:
        first = data_of(list(stream.events()), "start")
    with ask(service, question="How big is it?", parent=first["run"]) as stream:
        second = data_of(list(stream.events()), "start")
    assert second["conversation"] == first["conversation"]
    said = [(m["role"], m["content"]) for m in provider.calls[-1].json["messages"]]
    assert said == [
        ("system", "You are a helpful assistant."),
        ("user", "Capital of Japan?"),
        ("assistant", "It is Tokyo."),
        ("user", "How big is it?"),
    ]


# Runs


def test_a_run_is_started_once_however_often_it_is_asked_for(
    service: Server, provider: Provider
) -> None:
    run = "idempotent-0123456789"
    provider.script = Script(gated=True)
    answers: list[Response] = []

    def post() -> None:
        body = {"chain": "chat", "input": "once", "run": run}
        answers.append(request("POST", f"{service.url}/runs", json=body))

    threads = [threading.Thread(target=post) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200] * 49 + [201]
    provider.allow(3)
    with follow(service, run) as stream:
        assert text(list(stream.events())) == "Hello world"
    assert len(provider.calls) == 1


def test_a_run_tells_its_state_and_urls(service: Server, provider: Provider) -> None:
    described = start(service, "state")
    with follow(service, described["run"]) as stream:
        list(stream.events())
    response = request("GET", service.url + described["urls"]["self"])
    assert response.json()["status"] == "done"
    assert response.json()["chain"] == "chat"
    with Stream(service.url + described["urls"]["events"], headers={}) as stream:
        assert text(list(stream.events())) == "Hello world"


def test_after_reads_from_there(service: Server, provider: Provider) -> None:
    provider.script = Script(list("abcdef"))
    run = start(service, "alphabet")["run"]
    with follow(service, run) as stream:
        events = list(stream.events())
    for place, event in enumerate(events[:-1]):
        for query in (
            f"after={place + 1}",
            f"after={event.id}",
            f"after=0&lastEventId={event.id}",  # event-source-polyfill keeps the URL
        ):
            with Stream(f"{service.url}/runs/{run}/events?{query}") as stream:
                assert list(stream.events()) == events[place + 1 :]
    # Last-Event-ID goes before the URL's own place.
    url = f"{service.url}/runs/{run}/events?after=1"
    with Stream(url, headers={"Last-Event-ID": f"{run}:{len(events)}"}) as stream:
        assert stream.status == 204


def test_two_viewers_read_the_same(service: Server, provider: Provider) -> None:
    provider.script = Script(list("both"), gated=True)
    run = start(service, "two viewers")["run"]
    with follow(service, run) as one, follow(service, run) as two:
        provider.allow(4)
        assert list(one.events()) == list(two.events())
    assert len(provider.calls) == 1


# Stop


@pytest.mark.parametrize("tokens", [0, 2])
def test_cancel_closes_the_models_connection(
    service: Server, provider: Provider, tokens: int
) -> None:
    provider.script = Script(list("abcd"), stall=tokens)
    run = start(service, f"stall after {tokens}")["run"]
    assert provider.wait_calls(1)
    assert provider.calls[0].wait_sent(tokens)
    with follow(service, run) as stream:
        seen = [stream.next_event() for _ in range(tokens + (2 if tokens else 1))]
        answer = request("POST", f"{service.url}/runs/{run}/cancel")
        assert answer.json()["status"] == "cancelled"
        assert provider.calls[0].wait_closed()
        rest = list(stream.events())
    events = [e for e in seen if e] + rest
    assert text(events) == "ab"[:tokens]
    assert [e.type for e in events].count("end") == 1
    assert data_of(events, "end") == {"status": "cancelled", "finish_reason": None, "error": None}
    again = request("POST", f"{service.url}/runs/{run}/cancel")
    assert again.json()["status"] == "cancelled"


def test_a_lost_connection_is_not_a_stop(service: Server, provider: Provider) -> None:
    provider.script = Script(["on", "e"], gated=True)
    run = start(service, "lost")["run"]
    with follow(service, run) as stream:
        stream.next_event()
        stream.reset()
    provider.allow(2)
    with follow(service, run) as stream:
        assert text(list(stream.events())) == "one"


# Faults of the provider


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script(status=401), "model_auth"),
        (Script(status=429), "model_rate_limited"),
        (Script(status=500), "model_error"),
        (Script(status=503), "model_unavailable"),
        (Script(fault="rst", after=1), "model_unavailable"),
        (Script(fault="fin", after=1), "model_unavailable"),
        (Script(fault="short", after=1), "model_error"),
        (Script(fault="json", after=1), "model_error"),
        (Script(fault="utf8", after=1), "model_error"),
        (Script(fault="error", after=1), "model_error"),
        (Script(fault="html"), "model_error"),
        (Script(stall=1), "timeout"),
        (Script(mute=True), "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_providers_fault_ends_the_run_with_its_code(
    service: Server, provider: Provider, script: Script, code: str
) -> None:
    provider.script = script
    with ask(service, question="fault") as stream:
        events = list(stream.events())
    assert events[-1].type == "end"
    end = data_of(events, "end")
    assert end["status"] == "failed"
    assert end["error"]["code"] == code
    assert CANARY.encode() not in stream.received
    with ask(service, question="fault", format="text") as stream:
        events = list(stream.events())
    assert [e.type for e in events][-2:] == ["error", "end"]
    assert events[-2].data == end["error"]["message"]
    assert CANARY.encode() not in stream.received


# Bad input


def refused(response: Response, status: int, field: str | None) -> None:
    assert response.status == status, response.body
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem.get("field") == field


QUESTIONS: list[tuple[Any, str]] = [
    ("", "blank"),
    (" \n\t", "blank"),
    ("x" * 8001, "too long"),
    (None, "no text"),
    (7, "no text"),
    (["a"], "no text"),
    ("nul\0", "NUL"),
    ("half \ud83d", "surrogate"),
]


@pytest.mark.parametrize(("question", "why"), QUESTIONS)
def test_a_bad_question_is_refused(
    service: Server, provider: Provider, question: Any, why: str
) -> None:
    url = f"{service.url}/stream_chat"
    refused(request("POST", url, json={"question": question}), 400, "question")
    url = f"{service.url}/runs"
    refused(request("POST", url, json={"chain": "chat", "input": question}), 400, "input")
    asked = {"chain": "chat", "input": {"question": question}}
    refused(request("POST", url, json=asked), 400, "input")
    assert not provider.calls


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"[1]", 400, "body"),
        (b'"text"', 400, "body"),
        (b'{"question": NaN}', 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b"[" * 100_000, 400, "body"),
        (b"{}", 400, "question"),
        (b'{"question": "q", "role": "system"}', 400, "role"),
        (b'{"question": "q", "run": "short"}', 400, "run"),
        (b'{"question": "q", "run": 7}', 400, "run"),
        (b'{"question": "q", "parent": "../../etc/passwd...."}', 400, "parent"),
        (b'{"question": "q", "parent": "0123456789abcdef"}', 404, "parent"),
        (b'{"question": "q", "conversation": ""}', 400, "conversation"),
        (b'{"question": "q", "format": "pdf"}', 400, "format"),
        (b" " * 1_048_577, 413, "body"),
    ],
)
def test_a_bad_body_is_refused(
    service: Server, provider: Provider, body: bytes, status: int, field: str | None
) -> None:
    url = f"{service.url}/stream_chat"
    headers = {"Content-Type": "application/json"}
    refused(request("POST", url, body=body, headers=headers), status, field)
    assert not provider.calls


def test_a_chunked_body_is_limited_too(service: Server, provider: Provider) -> None:
    host = urlsplit(service.url).netloc
    with closing(HTTPConnection(host, timeout=10)) as connection:
        body = (b" " * 0x10000 for _ in range(17))
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/stream_chat", body, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    assert not provider.calls


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused(service: Server, provider: Provider, type: str) -> None:
    headers = {"Content-Type": type} if type else {}
    body = b'{"question": "q"}'
    url = f"{service.url}/stream_chat"
    refused(request("POST", url, body=body, headers=headers), 415, "Content-Type")
    assert not provider.calls


@pytest.mark.parametrize("cursor", ["x", "1:1", "run:-1", "0123456789abcdef:01", "0x1"])
def test_a_bad_cursor_is_refused(service: Server, provider: Provider, cursor: str) -> None:
    run = finished(service, "cursor")
    url = f"{service.url}/runs/{run}/events"
    refused(request("GET", f"{url}?after={cursor}"), 400, "after")
    refused(request("GET", url, headers={"Last-Event-ID": cursor}), 400, "Last-Event-ID")
    other = f"{'f' * 32}:1"
    refused(request("GET", url, headers={"Last-Event-ID": other}), 400, "Last-Event-ID")


def test_what_is_not_there_is_404(service: Server, provider: Provider) -> None:
    nowhere = "0" * 32
    refused(request("POST", f"{service.url}/stream_nothing", json={"question": "q"}), 404, "chain")
    refused(request("GET", f"{service.url}/stream_nothing?question=q"), 404, "chain")
    body = {"chain": "nothing", "input": "q"}
    refused(request("POST", f"{service.url}/runs", json=body), 404, "chain")
    refused(request("GET", f"{service.url}/runs/{nowhere}"), 404, "run")
    refused(request("GET", f"{service.url}/runs/{nowhere}/events"), 404, "run")
    refused(request("POST", f"{service.url}/runs/{nowhere}/cancel"), 404, "run")
    headers = {"Last-Event-ID": f"{nowhere}:3"}
    refused(request("GET", f"{service.url}/stream_chat?question=q", headers=headers), 404, "run")
    assert not provider.calls


def test_a_run_id_of_another_question_is_a_conflict(service: Server, provider: Provider) -> None:
    run = "conflict-0123456789"
    finished(service, "one question", run=run)
    body = {"chain": "chat", "input": "another", "run": run}
    refused(request("POST", f"{service.url}/runs", json=body), 409, "run")


def test_head_asks_nothing(service: Server, provider: Provider) -> None:
    response = request("HEAD", f"{service.url}/stream_chat?question=q")
    assert response.status == 405
    assert not provider.calls


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_a_foreign_page_may_not_ask(
    service: Server, provider: Provider, headers: dict[str, str]
) -> None:
    url = f"{service.url}/stream_chat"
    refused(request("GET", f"{url}?question=q", headers=headers), 403, None)
    refused(request("POST", url, json={"question": "q"}, headers=headers), 403, None)
    assert not provider.calls
