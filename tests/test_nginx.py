"""Behind nginx: a token is not held back, a viewer that goes is noticed; all wires, as shipped."""

from __future__ import annotations

import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import socketio

from .provider import Provider, Script
from .server import ROOT, Server
from .sse import Stream, request
from .test_websocket import wires
from .ws import Socket, text_of

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
        }}
    }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


SHIPPED = (ROOT / "deploy" / "nginx.conf").read_text()
FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def nginx(config: str, folder: Path, port: int) -> Iterator[str]:
    """An nginx of that configuration; its URL."""
    file = folder / "nginx.conf"
    file.write_text(config)
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", file, "-p", folder], stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 10
        while True:
            try:
                assert request("GET", f"{url}/health/ready").status == 200
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.communicate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture
def proxied(service: Server, tmp_path: Path) -> Iterator[str]:
    """The service's URL behind an nginx that says nothing of buffering."""
    port = free_port()
    config = CONFIG.format(folder=tmp_path, port=port, upstream=service.url)
    with nginx(config, tmp_path, port) as url:
        yield url


@contextmanager
def shipped(folder: Path, servers: list[Server], *, sticky: bool = True) -> Iterator[str]:
    """Two services of a worker each behind what is in `deploy`."""
    port = free_port()
    lines = "\n".join(f"    server {server.url.removeprefix('http://')};" for server in servers)
    config = SHIPPED
    for wanted, found in (
        ("    server 127.0.0.1:8000;", lines),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/var/log/nginx/stream.log", f"{folder}/access.log"),
        *([] if sticky else [("    hash $remote_addr consistent;\n", "")]),
    ):
        assert wanted in config
        config = config.replace(wanted, found)
    paths = "\n".join(f"{name}_temp_path {folder}/{name};" for name in FOLDERS)
    usual = f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
    with nginx(f"{usual}\nhttp {{\n{paths}\n{config}\n}}\n", folder, port) as url:
        yield url


@pytest.fixture
def two(provider: Provider, tmp_path: Path) -> Iterator[list[Server]]:
    """Two services with a worker each, and one store."""
    with wires(provider, tmp_path) as one, wires(provider, tmp_path) as other:
        yield [one, other]


def test_a_token_comes_through_before_the_next_is_said(proxied: str, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with Stream(f"{proxied}/stream_chat?question=nginx") as stream:
        assert stream.next_event() is not None  # start
        for token in "abc":
            provider.allow()
            event = stream.next_event()
            if token == "a":  # the message opens with its first word
                event = stream.next_event()
            assert event is not None
            assert f'"content":"{token}"' in event.data


def test_a_viewer_that_goes_is_noticed_through_it(
    proxied: str, service: Server, provider: Provider
) -> None:
    def streams() -> int:
        count: int = request("GET", f"{service.url}/health/ready").json()["open_streams"]
        return count

    provider.script = Script(["a"], stall=0)
    before = streams()
    with Stream(f"{proxied}/stream_chat?question=leave") as stream:
        stream.next_event()
        assert streams() == before + 1
    until = time.monotonic() + 10
    while streams() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert streams() == before


def test_as_shipped_all_wires_come_through(
    two: list[Server], provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script(["a", "b", "c"])
    with shipped(tmp_path, two) as url:
        with Stream(f"{url}/stream_count?question=3") as stream:
            said = [event.data for event in stream.events() if '"content"' in event.data]
            assert len(said) == 3
        with Socket(f"{url}/ws/chat") as ws:
            ws.say("nginx")
            assert text_of(ws.events()) == "abc"
        for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
            assert answer_to(url, transports) == "abc"
    log = (tmp_path / "access.log").read_text()
    assert "/socket.io/" in log
    assert "question" not in log
    assert "sid" not in log


def test_long_polling_needs_the_sticky_lines(
    two: list[Server], provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script(["a", "b", "c"])
    with shipped(tmp_path, two, sticky=False) as url:
        assert answer_to(url, ["websocket"]) == "abc"
        with pytest.raises(socketio.exceptions.ConnectionError):
            answer_to(url, ["polling"])


def answer_to(url: str, transports: list[str]) -> str:
    """What the official client is told in the end."""
    told: queue.Queue[str] = queue.Queue()
    client = socketio.Client(reconnection=False)
    client.on("stream_end", lambda data: told.put(data["full_response"]))
    client.connect(url, transports=transports, wait_timeout=5)
    try:
        client.emit("stream_question", "nginx")
        return told.get(timeout=20)
    finally:
        client.disconnect()
