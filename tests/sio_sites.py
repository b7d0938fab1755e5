"""Services with Socket.IO: fixtures, and the events that their clients have to receive.

A test module assigns the fixtures that it needs: `site, _site = sio_sites.site, sio_sites._site`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .provider import Provider
from .server import Server
from .sio import Poll, StreamEvent, Wire
from .socketio_js import fetch
from .test_websocket import run_of, wires

TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]]
transports = pytest.mark.parametrize("transports", TRANSPORTS, ids="+".join)
#: Both transports, with the clients written from the specification.
either = pytest.mark.parametrize("opened", [Wire, Poll])
Opened = Callable[..., Any]
#: The names that Socket.IO gives to the `id` in the data of these types.
OWN_ID = {"message_start": "message_id", "tool_call": "tool_call_id", "tool_result": "tool_call_id"}
#: The headers of a valid handshake.
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the official client for browsers is downloaded on demand."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="session")
def official(folder: Path) -> Path:
    """The official client for browsers, downloaded."""
    return fetch(folder)


@pytest.fixture(scope="module")
def _site(
    _provider: Provider, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    client = folder / "package" / "dist"
    made = wires(_provider, tmp_path_factory.mktemp("wires"), body_timeout=1.5, WIRES_CLIENT=client)
    with made as server:
        yield server


@pytest.fixture
def site(_site: Server, provider: Provider) -> Server:
    """A service of one worker with short time limits."""
    return _site


@contextmanager
def two_of(provider: Provider, folder: Path, **settings: object) -> Iterator[list[Server]]:
    """Two services that share a store."""
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        made = [wires(provider, folder, **settings) for _ in "12"]
        yield list(pool.map(stack.enter_context, made))


def as_stream_events(events: list[StreamEvent]) -> list[StreamEvent]:
    """Return the events that Socket.IO has to send for a run's log."""
    run, full, found = run_of(events[0]), "", []
    for event in events:
        type, data = event["type"], dict(event["data"])
        if type in OWN_ID:
            data[OWN_ID[type]] = data.pop("id")
        if type == "chunk" and data["kind"] == "text":
            full += data["content"]
        if type == "end" and data["error"] is None:
            data = {"full_response": full, **data, "run": run}
            del data["error"]
        elif type == "end":
            type, error, reason = "error", data["error"], data["finish_reason"]
            data = {"error": error["message"], "code": error["code"], "run": run}
            data["finish_reason"] = reason
            data["retryable"] = error["retryable"]
        found.append({"id": event["id"], "type": type, "data": data})
    return found


def fresh(name: str = "r") -> str:
    """Return a new id for a run."""
    return f"{name * 8}{random.randrange(10**20):020}"


def asked(client: Any, message: Any) -> list[StreamEvent]:
    """Ask a question; return all events of the answer."""
    client.emit("stream_question", message)
    events: list[StreamEvent] = client.events()
    return events
