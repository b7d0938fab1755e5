"""`Service`: the objects of one Flask app.

`FlaskStream.init_app` creates it and stores it in `app.extensions["flask_stream"]`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flask import Flask

from .config import Settings
from .dialects.base import Dialect
from .engine.chain import Chain
from .engine.maintenance import RunTimes
from .engine.runner import RunLimits
from .engine.runs import Runs
from .errors import ConfigError
from .registry import dialects, is_redis, open_checkpoints, open_store
from .security.access import Access
from .transports.base import ConnectionLimits, Transport
from .transports.sse import SSETimings, SSETransport

if TYPE_CHECKING:
    from .transports.socketio import Handshake, SocketIOTransport
    from .transports.websocket import WebSocketTransport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """The settings, runs, access rules and transports of one app.

    `websocket` and `socketio` are None if their extra is not installed.
    """

    settings: Settings
    runs: Runs
    access: Access
    dialects: Mapping[str, Dialect]
    checkpoints: AppCheckpoints
    sse: SSETransport
    websocket: WebSocketTransport | None
    socketio: SocketIOTransport | None

    @property
    def transports(self) -> list[Transport]:
        """Return the transports that are installed."""
        found: tuple[Transport | None, ...] = (self.sse, self.websocket, self.socketio)
        return [transport for transport in found if transport is not None]

    @property
    def open_connections(self) -> int:
        """Return how many event streams, WebSockets and Socket.IO clients are open."""
        return sum(transport.open for transport in self.transports)

    def drain(self, grace: float) -> None:
        """Refuse new runs, disconnect readers, and give live runs `grace` seconds to finish."""
        self.runs.drain(grace)

    def close(self) -> None:
        """End every run, thread and connection."""
        self.runs.close()
        for transport in self.transports:
            transport.close()
        self.checkpoints.close()


def make_service(
    app: Flask, settings: Settings, chains: Mapping[str, Chain], handshake: Handshake
) -> Service:
    """Return the service that the settings describe. Raises ConfigError.

    More chains may be added to `chains` later. `handshake` admits Socket.IO clients.
    """
    checkpoints = AppCheckpoints(settings.checkpoints, app.instance_path)
    store = open_store(settings.store, app.instance_path)
    access = Access(app, settings, store)
    limits = RunLimits(settings.first_token_timeout, settings.silence_timeout, settings.run_timeout)
    times = RunTimes(limits, settings.lease, settings.keep)
    runs = Runs(store, AppChains(chains, checkpoints, settings), times, access.quotas.add_tokens)
    connection_limits = ConnectionLimits(
        settings.heartbeat, settings.write_timeout, settings.max_body
    )
    timings = SSETimings(settings.heartbeat, settings.reconnect, settings.write_timeout)

    def draining() -> bool:
        return runs.draining

    websocket, socketio = None, None
    if find_spec("websockets") is not None:
        from .transports.websocket import WebSocketTransport

        websocket = WebSocketTransport(connection_limits, draining)
    if find_spec("flask_socketio") is not None and find_spec("websockets") is not None:
        from .transports.socketio import SocketIOTransport

        queue_url = settings.store if is_redis(settings.store) else None
        socketio = SocketIOTransport(app, connection_limits, queue_url, draining, handshake)
    return Service(
        settings=settings,
        runs=runs,
        access=access,
        dialects=dialects(),
        checkpoints=checkpoints,
        sse=SSETransport(timings, draining),
        websocket=websocket,
        socketio=socketio,
    )


class AppChains(Mapping[str, Chain]):
    """The chains of a `FlaskStream`, with the checkpointer and settings of one app."""

    def __init__(
        self, chains: Mapping[str, Chain], checkpoints: AppCheckpoints, settings: Settings
    ) -> None:
        self._added = chains
        self._checkpoints = checkpoints
        self._history_tokens = settings.history_tokens
        self._configured: dict[str, Chain] = {}

    def __getitem__(self, name: str) -> Chain:
        if name not in self._configured:
            chain = self._added[name]
            source = chain.source.with_checkpointer(self._checkpoints.saver_for)
            if chain.history_tokens is None:
                chain = replace(chain, history_tokens=self._history_tokens)
            # If two threads get here at once, both use the chain that was stored first.
            self._configured.setdefault(name, replace(chain, source=source))
        return self._configured[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._added)

    def __len__(self) -> int:
        return len(self._added)


class AppCheckpoints:
    """The checkpointer of one app, for graphs that were compiled without one.

    LangGraph is imported when a graph first needs a saver. Raises ConfigError for a wrong URL at
    once, unless it is a `sqlite:///` URL as in the default.
    """

    def __init__(self, url: str, folder: str) -> None:
        self._url = url
        self._folder = folder
        self._lock = threading.Lock()
        self._saver: Any = None
        self._closed = False
        if not url.startswith("sqlite:///"):
            self._open()

    def saver_for(self, graph: Any) -> Any:
        """Return the saver for a graph, or None if the state of graphs is not kept.

        Raises RuntimeError after `close`.
        """
        saver = self._open()
        if saver is None:
            return None
        from .checkpoints.allowed_types import with_types_of

        return with_types_of(saver, graph)

    def close(self) -> None:
        """Stop threads and close connections. A second call does nothing."""
        with self._lock:
            self._closed = True
            saver, self._saver = self._saver, None
        # LangGraph's own savers have no `close`.
        if hasattr(saver, "close"):
            saver.close()

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("the checkpointer is closed")
            if self._url:
                url, self._url = self._url, ""
                self._saver = self._open_url(url)
            return self._saver

    def _open_url(self, url: str) -> Any:
        if find_spec("langgraph") is None:
            raise ConfigError("STREAM_CHECKPOINTS", "needs: pip install 'flask-llm-stream[graph]'")
        # The default URL needs a package that an installation with LangGraph may lack.
        if url.startswith("sqlite:") and find_spec("langgraph.checkpoint.sqlite") is None:
            logger.warning("the state of graphs is not kept: pip install 'flask-llm-stream[graph]'")
            return None
        return open_checkpoints(url, self._folder)
