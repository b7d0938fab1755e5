"""`Service`: everything that one Flask app has of this package.

It is made by `FlaskStream.init_app` and kept in `app.extensions["flask_stream"]`.
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
from .transports.base import ConnectionLimits
from .transports.sse import SSETimings, SSETransport

if TYPE_CHECKING:
    from .transports.socketio import Handshake, SocketIOTransport
    from .transports.websocket import WebSocketTransport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """The settings, runs, access rules and transports of one app.

    `websocket` and `socketio` are None where their extra is not installed.
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
    def open_connections(self) -> int:
        """How many event streams, WebSockets and Socket.IO clients are open."""
        others = (self.websocket, self.socketio)
        return self.sse.open + sum(each.open for each in others if each is not None)

    def drain(self, grace: float) -> None:
        """Refuse new runs, send readers away, and give live runs `grace` seconds to finish."""
        self.runs.drain(grace)

    def close(self) -> None:
        """End every run, thread and connection."""
        self.runs.close()
        self.sse.close()
        for transport in (self.websocket, self.socketio):
            if transport is not None:
                transport.close()
        self.checkpoints.close()


def make_service(
    app: Flask, settings: Settings, chains: Mapping[str, Chain], handshake: Handshake
) -> Service:
    """Open what the settings name, and connect it. Raises ConfigError.

    `chains` may grow later. `handshake` admits Socket.IO clients.
    """
    checkpoints = AppCheckpoints(settings.checkpoints, app.instance_path)
    store = open_store(settings.store, app.instance_path)
    access = Access(app, settings, store)
    limits = RunLimits(settings.first_token_timeout, settings.silence_timeout, settings.run_timeout)
    times = RunTimes(limits, settings.lease, settings.keep)
    runs = Runs(store, AppChains(chains, checkpoints, settings), times, access.quotas.spent)
    bounds = ConnectionLimits(settings.heartbeat, settings.write_timeout, settings.max_body)
    pace = SSETimings(settings.heartbeat, settings.reconnect, settings.write_timeout)

    def draining() -> bool:
        return runs.draining

    websocket, socketio = None, None
    if find_spec("websockets") is not None:
        from .transports.websocket import WebSocketTransport

        websocket = WebSocketTransport(bounds, draining)
    if find_spec("flask_socketio") is not None and find_spec("websockets") is not None:
        from .transports.socketio import SocketIOTransport

        queue = settings.store if is_redis(settings.store) else None
        socketio = SocketIOTransport(app, bounds, queue, draining, handshake)
    return Service(
        settings=settings,
        runs=runs,
        access=access,
        dialects=dialects(),
        checkpoints=checkpoints,
        sse=SSETransport(pace, draining),
        websocket=websocket,
        socketio=socketio,
    )


class AppChains(Mapping[str, Chain]):
    """The chains of a `FlaskStream` as one app has them: with its checkpointer and settings."""

    def __init__(
        self, chains: Mapping[str, Chain], checkpoints: AppCheckpoints, settings: Settings
    ) -> None:
        self._added = chains
        self._checkpoints = checkpoints
        self._history_tokens = settings.history_tokens
        self._own: dict[str, Chain] = {}

    def __getitem__(self, name: str) -> Chain:
        if name not in self._own:
            chain = self._added[name]
            source = chain.source.with_checkpointer(self._checkpoints.saver_for)
            if chain.history_tokens is None:
                chain = replace(chain, history_tokens=self._history_tokens)
            # Two threads may get here at once: both then use the one that was stored first.
            self._own.setdefault(name, replace(chain, source=source))
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._added)

    def __len__(self) -> int:
        return len(self._added)


class AppCheckpoints:
    """Where one app keeps the state of graphs that were compiled without a checkpointer.

    LangGraph is imported when a graph first asks for a saver. A URL that was set, and is wrong, is
    refused at once: raises ConfigError.
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
        """Return the saver for a graph, or None if no state is kept.

        Raises RuntimeError after `close`.
        """
        saver = self._open()
        if saver is None:
            return None
        from .checkpoints.allowed_types import with_types_of

        return with_types_of(saver, graph)

    def close(self) -> None:
        """End threads and connections. It may be called again."""
        with self._lock:
            self._closed = True
            saver, self._saver = self._saver, None
        # LangGraph's own savers have no `close`.
        if hasattr(saver, "close"):
            saver.close()

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("the checkpoints are closed")
            if self._url:
                url, self._url = self._url, ""
                self._saver = self._opened(url)
            return self._saver

    def _opened(self, url: str) -> Any:
        if find_spec("langgraph") is None:
            raise ConfigError("STREAM_CHECKPOINTS", "needs: pip install 'flask-llm-stream[graph]'")
        # The default, on an installation that has LangGraph and not its SQLite saver.
        if url.startswith("sqlite:") and find_spec("langgraph.checkpoint.sqlite") is None:
            logger.warning("graphs keep no state: pip install 'flask-llm-stream[graph]'")
            return None
        return open_checkpoints(url, self._folder)
