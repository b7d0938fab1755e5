"""`FlaskStream`: the Flask extension."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from flask import Flask, current_app
from werkzeug.middleware.proxy_fix import ProxyFix

from .config import Settings
from .engine.chain import Chain
from .engine.chain_options import Cache, check_options
from .engine.start_request import Multitask
from .errors import ConfigError
from .registry import is_graph, make_source
from .service import Service, make_service
from .sources.base import Input
from .web.host_app import EXTENSION, check_names, check_routes
from .web.routes import make_blueprint
from .web.sockets import add_socketio, add_websocket, make_handshake

Function = TypeVar("Function", bound=Callable[..., Iterable[Any]])

#: What a chain may be called: its name becomes part of a URL.
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"


class FlaskStream:
    """Serves chains from a Flask app as streams.

        app = Flask(__name__)
        stream = FlaskStream(app)
        stream.add("chat", prompt | model | StrOutputParser())

    `settings` are those of `flask_stream.config` without the prefix, such as `heartbeat=5`. They
    override Flask's config. Raises ConfigError for a wrong value, and where a name or a route of
    the app collides with one of ours.
    """

    def __init__(self, app: Flask | None = None, **settings: Any) -> None:
        self._chains: dict[str, Chain] = {}
        self._given = settings
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the routes to an app. Chains may be added before or after."""
        settings = Settings.load(app.config, self._given)
        check_names(app)
        if settings.proxies:
            hops = settings.proxies
            fixed = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)
            app.wsgi_app = fixed  # type: ignore[method-assign]
        handshake = make_handshake(app)
        service = make_service(app, settings, self._chains, handshake)
        blueprint = make_blueprint(settings, service.access)
        if service.websocket is not None:
            add_websocket(blueprint, service.websocket)
        if service.socketio is not None and service.socketio.own:
            add_socketio(blueprint, service.socketio, handshake)
        app.register_blueprint(blueprint)
        try:
            check_routes(app, settings.url_prefix)
        except ConfigError:
            service.close()
            raise
        app.extensions[EXTENSION] = service

    def add(
        self,
        name: str,
        chain: Any,
        *,
        input: Callable[[Input], Any] | None = None,
        state: bool | Sequence[str] | Callable[[Any], Any] = False,
        public: bool = False,
        multitask: Multitask = "refuse",
        cache: float | Cache | None = None,
        restarts: int = 0,
        history_tokens: int | None = None,
        refusal: Callable[[], str | None] | None = None,
    ) -> None:
        """Add a chain under a name: it answers at `/stream_<name>` and through `POST /runs`.

            stream.add("chat", prompt | model)
            stream.add("faq", chain, public=True, cache=Cache(3600, shared=True), restarts=2)

        A chain is anything with LangChain's `stream` method, a compiled LangGraph graph, or a
        function that takes a question and yields text.

        `input` is a function that turns an `Input` into the chain's own input. It is needed where
        the chain's input schema does not say where the question goes.

        `state` is what clients may see of a graph's state after each step: nothing (False), all of
        it (True), the named keys, or what a function returns for it.

        `public=True` lets people use the chain without signing in, and with `STREAM_ORIGINS=*`
        from the pages of any site.

        `multitask` is what happens to a question whose conversation has a live run: it is refused
        with 409 (`refuse`), waits (`queue`), or stops the live run and then follows it
        (`interrupt`) or takes its place (`replace`).

        `cache` answers the same question after the same history without calling the model: for
        that many seconds to the same principal, or as a `Cache` says.

        `restarts` is how often another worker may start a run anew when its own is lost. The model
        is then called, and paid for, again. A graph with a checkpointer needs none: it continues
        from its last checkpoint.

        `history_tokens` is about how many tokens of earlier turns the chain gets as messages.
        None: `STREAM_HISTORY_TOKENS`.

        `refusal` is called before each run. It returns None, or a sentence for the user that says
        why the chain cannot answer at all.

        Raises ConfigError for a chain that cannot be streamed and for a wrong option.
        """
        if not isinstance(name, str) or re.fullmatch(_NAME, name) is None:
            raise ConfigError(
                f"chain {name!r}",
                "has a name that cannot be part of a URL: use up to 64 of a-z, 0-9, '-' and '_', "
                "and begin with a letter or digit",
            )
        if name in self._chains:
            raise ConfigError(f"chain {name!r}", "has already been added")
        cached = check_options(name, restarts, multitask, history_tokens, cache)
        source = make_source(name, chain, input, state)
        if cached is not None and is_graph(chain) and chain.checkpointer is not False:
            raise ConfigError(
                f"chain {name!r}",
                f"has cache={cache!r}, and a graph that keeps state: its state would not have the "
                "answers from the cache",
            )
        self._chains[name] = Chain(
            name,
            source,
            attempts=restarts + 1,
            public=public,
            multitask=multitask,
            cache=0.0 if cached is None else cached.seconds,
            shared=cached is not None and cached.shared,
            version="" if cached is None else cached.version,
            refusal=refusal,
            history_tokens=history_tokens,
        )

    def chain(self, name: str, **options: Any) -> Callable[[Function], Function]:
        """Add the decorated function under a name, with the options of `add`."""
        if not isinstance(name, str):
            raise ConfigError("@stream.chain", 'needs a name: @stream.chain("shout")')

        def decorate(function: Function) -> Function:
            self.add(name, function, **options)
            return function

        return decorate

    def revoke(self, principal: str) -> None:
        """Sign a principal out of the current app: `user:<id>`, `session:<id>`, `site:<name>`.

        Their sessions, tokens and tickets count no longer, and open streams end within
        `STREAM_RECHECK`. Raises StoreError, and ValueError for what can be no principal.
        """
        if not principal.startswith(("user:", "session:", "site:")):
            raise ValueError(
                f"{principal!r} is not a principal: use user:<id>, session:<id> or site:<name>"
            )
        service: Service = current_app.extensions["flask_stream"]
        service.access.revocation.revoke(principal)
