"""`FlaskStream`: wires the house together. Alone names implementations."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flask import Flask, current_app
from werkzeug.middleware.proxy_fix import ProxyFix

from .access import Access
from .blueprint import make_blueprint
from .config import LONGEST, Settings
from .dialects.base import Dialect
from .dialects.native import Native
from .dialects.text import Text
from .errors import ConfigError, StoreError
from .headers import headers
from .keeper import Times
from .live import Chain
from .runner import Limits
from .runs import Runs
from .sources.base import Input, Source
from .sources.function import FunctionSource
from .sources.langchain import LangChainSource
from .starts import MULTITASK, Multitask
from .stores.base import Store
from .stores.memory import MemoryStore
from .stores.sqlite import SqliteStore
from .transports.base import Bounds
from .transports.sse import SSE, Pace

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from .transports.websocket import WebSockets

Function = TypeVar("Function", bound=Callable[..., Iterable[Any]])

#: Seconds for which shared answers are kept.
DAY = 86_400.0
#: What a chain may be called: it becomes part of a URL.
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"


@dataclass(frozen=True, slots=True)
class Service:
    """What one app has: kept in `app.extensions["flask_stream"]`."""

    settings: Settings
    runs: Runs
    sse: SSE
    dialects: dict[str, Dialect]
    access: Access
    sockets: WebSockets | None

    def drain(self, grace: float) -> None:
        """The worker goes: no new runs, readers sent to others, live runs get `grace` seconds."""
        self.runs.drain(grace)

    def close(self) -> None:
        """End every run, thread and connection."""
        self.runs.close()
        self.sse.close()
        if self.sockets is not None:
            self.sockets.close()


class FlaskStream:
    """Puts chains on the wire.

        app = Flask(__name__)
        stream = FlaskStream(app)
        stream.add("chat", prompt | model | StrOutputParser())

    `settings` are those of `flask_stream.config`, without the prefix: `heartbeat=5`. They go
    before Flask's config. Raises ConfigError for one that cannot work.
    """

    def __init__(self, app: Flask | None = None, **settings: Any) -> None:
        self._chains: dict[str, Chain] = {}
        self._given = settings
        self._saver: Callable[[], Any] = lambda: None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an app the streaming endpoints. Chains may be added before or after."""
        settings = Settings.load(app.config, self._given)
        if settings.proxies:
            hops = settings.proxies
            fixed = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)
            app.wsgi_app = fixed  # type: ignore[method-assign]
        folder = app.instance_path
        self._saver = cache(lambda: _checkpoints(settings.checkpoints, folder))
        store = open_store(settings.store, app.instance_path)
        access = Access(app, settings, store)
        limits = Limits(
            settings.first_token_timeout, settings.silence_timeout, settings.run_timeout
        )
        times = Times(limits, settings.lease, settings.keep)
        runs = Runs(store, self._chains, times, access.quotas.spent)
        pace = Pace(settings.heartbeat, settings.reconnect, settings.write_timeout)
        dialects: list[Dialect] = [Native(), Text()]
        bounds = Bounds(settings.heartbeat, settings.write_timeout, settings.max_body)
        sockets = None
        if find_spec("flask_sock") is not None:  # an extra
            from .transports.websocket import WebSockets

            sockets = WebSockets(bounds, draining=lambda: runs.draining)
        app.extensions["flask_stream"] = Service(
            settings=settings,
            runs=runs,
            sse=SSE(pace, draining=lambda: runs.draining),
            dialects={dialect.name: dialect for dialect in dialects},
            access=access,
            sockets=sockets,
        )
        blueprint = make_blueprint(settings.page, access, headers(settings.frame_ancestors))
        if sockets is not None:
            from .sockets import add_websocket

            add_websocket(blueprint, sockets)
        app.register_blueprint(blueprint)

    def add(
        self,
        name: str,
        chain: Any,
        *,
        input: Callable[[Input], Any] | None = None,
        on_lost: Literal["fail", "restart"] = "fail",
        attempts: int = 3,
        public: bool = False,
        multitask: Multitask = "refuse",
        cache: float | Literal["shared"] | None = None,
        version: str = "",
        state: bool | Sequence[str] | Callable[[Any], Any] = False,
        refusal: Callable[[], str | None] | None = None,
    ) -> None:
        """Let `chain` be asked as `name`: at `/stream_<name>`, and by `POST /runs`.

        A chain is anything with LangChain's `stream`, a compiled LangGraph graph, or a function
        of one question that yields text. `input` turns a question into the chain's own input
        where that is not plain from its input schema.

        `on_lost="restart"` has another worker start a run anew when its own is gone, up to
        `attempts` tries in all: only for chains that may be asked twice, since the model is paid
        twice. A graph with a checkpointer goes on from its last checkpoint instead.

        `public=True` lets people ask who are not signed in, and with `STREAM_ORIGINS=*` the
        pages of any site.

        `multitask` says what becomes of a question whose conversation has a live run: it is
        refused (409), waits (`queue`), or goes on after the live one is stopped, behind it
        (`interrupt`) or in its place (`replace`).

        `cache` is for how many seconds the same question after the same history, by the same
        principal, is answered from what was said before; `"shared"` is for a day and across all
        principals, for answers that are nobody's own. A chain that has changed says so with
        another `version`.

        `state` is what clients may see of a graph's state after each step: nothing, all of it,
        the keys that are named, or what a function makes of it. `refusal` is asked before each
        run why the chain cannot answer at all, a sentence for people; None if it can.

        Raises ConfigError for a chain that cannot be asked.
        """
        if re.fullmatch(_NAME, name) is None:
            raise ConfigError(f"chain {name!r}", "is no name: use a-z, 0-9, '-' and '_'")
        if name in self._chains:
            raise ConfigError(f"chain {name!r}", "is there already")
        if on_lost not in ("fail", "restart") or attempts < 1:
            raise ConfigError(f"chain {name!r}", "has an on_lost or attempts that cannot be")
        source = _source(name, chain, input, state, self._saver_of)
        if multitask not in MULTITASK:
            raise ConfigError(f"chain {name!r}", f"has a multitask of none of {MULTITASK}")
        shared = cache == "shared"
        seconds = DAY if shared else cache or 0.0
        if isinstance(seconds, str | bool) or not 0 <= seconds <= LONGEST:
            raise ConfigError(f"chain {name!r}", "has a cache that is no number of seconds")
        if seconds and _is_graph(chain) and chain.checkpointer is not False:
            raise ConfigError(
                f"chain {name!r}", "has a cache, and a state that would miss what it answers"
            )
        self._chains[name] = Chain(
            name,
            source,
            attempts=attempts if on_lost == "restart" else 1,
            public=public,
            multitask=multitask,
            cache=seconds,
            shared=shared,
            version=version,
            refusal=refusal,
        )

    def chain(self, name: str, **options: Any) -> Callable[[Function], Function]:
        """Add the decorated generator function under that name; options are those of `add`."""

        def decorate(function: Function) -> Function:
            self.add(name, function, **options)
            return function

        return decorate

    def _saver_of(self, graph: Any) -> Any:
        """Where a graph without a checkpointer keeps its state, if anywhere."""
        saver = self._saver()
        if saver is None:
            return None
        from .checkpoints import with_types_of

        return with_types_of(saver, graph)

    def revoke(self, principal: str) -> None:
        """Sign a principal out of the current app: `user:<id>`, `session:<id>`, `site:<name>`.

        Their sessions, tokens and tickets count no longer, and open streams end within
        `STREAM_RECHECK`. Raises StoreError.
        """
        service: Service = current_app.extensions["flask_stream"]
        service.access.revoke(principal)


def open_store(url: str, folder: str) -> Store:
    """The store that a URL names; a relative SQLite path is one in `folder`. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        path = rest.removeprefix("/")
        if not path:
            raise ConfigError("STREAM_STORE", f"is {url!r}, which names no file")
        try:
            return SqliteStore(Path(folder) / path)
        except StoreError as error:
            raise ConfigError("STREAM_STORE", f"is {url!r}: {error}") from error
    if scheme in ("redis", "rediss", "unix"):
        # Imported when it is wanted: redis-py is an extra.
        from .stores.redis import RedisStore

        return RedisStore(url)
    if url == "memory://":
        return MemoryStore()
    raise ConfigError(
        "STREAM_STORE",
        "is no URL of a store, and should be sqlite:///file, redis://host, rediss://host, "
        "unix://socket or memory://",
    )


def _source(
    name: str,
    chain: Any,
    prepare: Callable[[Input], Any] | None,
    state: bool | Sequence[str] | Callable[[Any], Any],
    saver: Callable[[Any], Any],
) -> Source:
    if hasattr(chain, "stream"):
        try:
            if _is_graph(chain):
                # Imported when it is wanted: langgraph is an extra.
                from .sources.langgraph import LangGraphSource

                return LangGraphSource(
                    chain, prepare, state=state, checkpointer=lambda: saver(chain)
                )
            return LangChainSource(chain, prepare)
        except ValueError as error:
            raise ConfigError(f"chain {name!r}", f"cannot be asked: {error}") from error
    if callable(chain):
        return FunctionSource(chain)
    raise ConfigError(f"chain {name!r}", f"is {chain!r}, which has no stream and is no function")


def _checkpoints(url: str, folder: str) -> Any:
    # LangGraph is an extra, and so is its SQLite: who has it not, and named nothing, has no state.
    from .checkpoints import open_checkpoints

    if url.startswith("sqlite:") and find_spec("langgraph.checkpoint.sqlite") is None:
        logger.warning("graphs keep no state: pip install 'flask-llm-stream[graph]'")
        return None
    return open_checkpoints(url, folder)


def _is_graph(chain: Any) -> bool:
    """Whether it is a compiled LangGraph graph, found out without importing that."""
    return any(
        kind.__name__ == "Pregel" and kind.__module__.startswith("langgraph.")
        for kind in type(chain).__mro__
    )
