"""Documents that are uploaded: read, checked, and summarised; nothing is stored by halves."""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flask_stream.security.quotas import UPLOADS_PER_ADDRESS

from .people import settings, users
from .provider import Provider, Script
from .server import Server
from .sse import Response, Stream, request
from .test_local import wait_for


def upload(service: Server, *parts: tuple[str, str | None, bytes]) -> Response:
    """A form: names, file names where they are files, and contents."""
    boundary = secrets.token_hex(8)
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"' if file is not None else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return request("POST", f"{service.url}/runs", body=body, headers=headers)


CHAIN = ("chain", None, b"summary")


def test_an_uploaded_document_is_summarised(service: Server, provider: Provider) -> None:
    provider.script = Script(["It", " rains."])
    page = b"<html><script>no</script><p>Rain falls on the <b>hills</b>.</p></html>"
    answer = upload(service, CHAIN, ("document", "weather.html", page))
    assert answer.status == 201, answer.body
    with Stream(f"{service.url}/runs/{answer.json()['run']}/events") as stream:
        events = [(event.type, json.loads(event.data)) for event in stream.events()]
    assert events[0][1]["input"] == {"document": "Rain falls on the hills."}
    assert "".join(d["content"] for _, d in events if "content" in d) == "It rains."
    (call,) = provider.calls
    asked = call.json["messages"][-1]
    assert asked["role"] == "user"
    assert "Rain falls on the hills." in asked["content"]


@pytest.mark.parametrize(
    ("parts", "status", "field"),
    [
        ([CHAIN], 400, "document"),
        ([CHAIN, ("document", "empty.txt", b"")], 400, "document"),
        ([CHAIN, ("document", "blank.md", b" \n ")], 400, "document"),
        ([CHAIN, ("document", "what.exe", b"MZ")], 400, "document"),
        ([CHAIN, ("document", "broken.pdf", b"%PDF-1.7 nothing")], 400, "document"),
        ([CHAIN, ("document", "long.txt", b"a " * 300_000)], 413, "document"),
        ([CHAIN, ("other", "a.txt", b"text")], 400, "other"),
        ([("chain", None, b"chat"), ("document", "a.txt", b"text")], 400, "input"),
        ([("chain", None, b"none"), ("document", "a.txt", b"text")], 404, "chain"),
        ([CHAIN, ("role", None, b"system"), ("document", "a.txt", b"text")], 400, "role"),
    ],
)
def test_what_cannot_be_read_is_refused(
    service: Server,
    provider: Provider,
    parts: list[tuple[str, str | None, bytes]],
    status: int,
    field: str,
) -> None:
    answer = upload(service, *parts)
    assert (answer.status, answer.json()["field"]) == (status, field), answer.body
    assert provider.calls == []


def test_a_form_of_another_site_is_refused(service: Server, provider: Provider) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="chain"\r\n\r\nsummary\r\n--x--\r\n'
    headers = {
        "Content-Type": "multipart/form-data; boundary=x",
        "Origin": "https://evil.example",
        "Sec-Fetch-Site": "cross-site",
    }
    answer = request("POST", f"{service.url}/runs", body=body, headers=headers)
    assert answer.status == 403
    assert provider.calls == []


def test_the_headers_of_parts_are_bounded(service: Server, provider: Provider) -> None:
    long = b'--x\r\nContent-Disposition: form-data; name="' + b'\\"' * 5_000_000 + b'"\r\n\r\n'
    for body in (long, b"--x\r\n" + b"a=b; " * 3_000_000, b" " * 5_000_000 + long):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = request("POST", f"{service.url}/runs", body=body, headers=headers)
        assert (answer.status, answer.json()["field"]) == (400, "body")
    packed = headers | {"Content-Encoding": "gzip"}
    answer = request("POST", f"{service.url}/runs", body=b"x", headers=packed)
    assert (answer.status, answer.json()["field"]) == (415, "Content-Encoding")
    assert provider.calls == []


class Slow:
    """An upload that has begun, and does not go on."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.socket.sendall(
            f"POST /runs HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 10000000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
        )

    def answer(self) -> int:
        response = HTTPResponse(self.socket, method="POST")
        response.begin()
        return response.status


def test_so_many_uploads_of_one_address_at_once(service: Server, provider: Provider) -> None:
    provider.script = Script(["It rains."])
    good = CHAIN, ("document", "a.txt", b"Rain falls.")
    with ExitStack() as stack:
        for _ in range(UPLOADS_PER_ADDRESS):
            stack.enter_context(Slow(service.url).socket)
        wait_for(lambda: upload(service, *good).status == 429)
    wait_for(lambda: upload(service, *good).status == 201)


def test_who_may_not_ask_sends_no_body(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, **settings("jwt"), USERS_PUBLIC="no") as server:
        asked = Slow(server.url)
        with asked.socket:
            assert asked.answer() == 401


def test_an_upload_counts_as_a_start_before_it_is_read(provider: Provider, tmp_path: Path) -> None:
    with users(provider, tmp_path, address_limit="2/minute") as server:
        broken = ("chain", None, b"chat"), ("document", "a.pdf", b"%PDF-1.7 nothing")
        assert [upload(server, *broken).status for _ in range(3)] == [400, 400, 429]
