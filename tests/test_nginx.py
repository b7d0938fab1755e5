"""Behind nginx as it comes: a token is not held back, and a viewer that goes is noticed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .provider import Provider, Script
from .server import Server
from .sse import Stream, request

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


@pytest.fixture
def proxied(service: Server, tmp_path: Path) -> Iterator[str]:
    """The service's URL behind an nginx that says nothing of buffering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port, upstream=service.url))
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", config, "-p", tmp_path], stderr=subprocess.PIPE)
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


def test_a_token_comes_through_before_the_next_is_said(proxied: str, provider: Provider) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with Stream(f"{proxied}/stream_chat?question=nginx") as stream:
        assert [stream.next_event() is not None for _ in ("start", "message")]
        for token in "abc":
            provider.allow()
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
