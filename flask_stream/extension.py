"""`FlaskStream`: the Flask extension."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from flask import Flask, current_app
from werkzeug.middleware.proxy_fix import ProxyFix

from .config import LONGEST, Settings
from .engine.admission import MULTITASK, Multitask
from .engine.chain import Chain
from .errors import ConfigError
from .registry import is_graph, make_source
from .service import Service, make_service
from .sources.base import Input
from .web.routes import make_blueprint
from .web.sockets import add_socketio, add_websocket, make_handshake

Function = TypeVar("Function", bound=Callable[..., Iterable[Any]])

#: Seconds for which shared answers are kept.
DAY = 86_400.0
#: What a chain may be called: it becomes part of a URL.
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"


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
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an app the streaming endpoints. Chains may be added before or after."""
        settings = Settings.load(app.config, self._given)
        if settings.proxies:
            hops = settings.proxies
            fixed = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)
            app.wsgi_app = fixed  # type: ignore[method-assign]
        handshake = make_handshake(app)
        service = make_service(app, settings, self._chains, handshake)
        app.extensions["flask_stream"] = service
        blueprint = make_blueprint(settings, service.access)
        if service.websocket is not None:
            add_websocket(blueprint, service.websocket)
        if service.socketio is not None and service.socketio.own:
            add_socketio(blueprint, service.socketio, handshake)
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
        history_tokens: int | None = None,
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

        `history_tokens` is how many tokens of earlier turns, about, a question brings along for
        a chain that takes them as messages; None for `STREAM_HISTORY_TOKENS`.

        Raises ConfigError for a chain that cannot be asked.
        """
        if re.fullmatch(_NAME, name) is None:
            told = "use a-z, 0-9, '-' and '_', beginning with a letter or digit, 64 at most"
            raise ConfigError(f"chain {name!r}", f"is no name: {told}")
        if name in self._chains:
            raise ConfigError(f"chain {name!r}", "is there already")
        if on_lost not in ("fail", "restart"):
            told = f"has on_lost={on_lost!r}, and should have 'fail' or 'restart'"
            raise ConfigError(f"chain {name!r}", told)
        if not isinstance(attempts, int) or attempts < 1:
            told = f"has attempts={attempts!r}, and should have 1 or more"
            raise ConfigError(f"chain {name!r}", told)
        source = make_source(name, chain, input, state)
        if multitask not in MULTITASK:
            told = f"has multitask={multitask!r}, and should have one of {', '.join(MULTITASK)}"
            raise ConfigError(f"chain {name!r}", told)
        if history_tokens is not None and history_tokens < 0:
            told = f"has history_tokens={history_tokens!r}, and should have 0 or more"
            raise ConfigError(f"chain {name!r}", told)
        shared = cache == "shared"
        seconds = DAY if shared else cache or 0.0
        if isinstance(seconds, bool | str) or not 0 <= seconds <= LONGEST:
            told = f"has cache={cache!r}, and should have seconds, up to {LONGEST}, or 'shared'"
            raise ConfigError(f"chain {name!r}", told)
        if seconds and is_graph(chain) and chain.checkpointer is not False:
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
            history_tokens=history_tokens,
        )

    def chain(self, name: str, **options: Any) -> Callable[[Function], Function]:
        """Add the decorated generator function under that name; options are those of `add`."""
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
            raise ValueError(f"{principal!r} is no principal: user:<id>, session:<id>, site:<name>")
        service: Service = current_app.extensions["flask_stream"]
        service.access.revocation.revoke(principal)
