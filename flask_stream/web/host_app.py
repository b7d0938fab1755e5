"""Checks of the host app and its server: name and route collisions, unsuitable servers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Flask, current_app, request
from werkzeug.routing import Rule

from ..concurrency.greenlets import uses_greenlets
from ..errors import ConfigError

logger = logging.getLogger(__name__)

#: The name of our blueprint, and where an app keeps its service.
BLUEPRINT, EXTENSION = "stream", "flask_stream"

_GEVENT = "Use gunicorn's gevent worker: see docs/deployment.md"
ONE_REQUEST = f"This server handles one request at a time: one open stream blocks it. {_GEVENT}"
ONE_THREAD_EACH = (
    "This server uses one thread for each open stream. When all of its threads are in use, other "
    f"requests wait. {_GEVENT}"
)
_logged: set[str] = set()


def check_names(app: Flask) -> None:
    """Raise ConfigError if the app already has our blueprint's or our extension's name."""
    if EXTENSION in app.extensions:
        found = type(app.extensions[EXTENSION])
        raise ConfigError(
            f"app.extensions[{EXTENSION!r}]",
            f"is already set, to a {found.__module__}.{found.__qualname__}: one app can have one "
            "FlaskStream",
        )
    if BLUEPRINT in app.blueprints:
        raise ConfigError(
            f"The blueprint {BLUEPRINT!r}",
            f"of {app.blueprints[BLUEPRINT].import_name} is already registered on this app, and "
            "flask_stream registers its own under the same name: rename yours",
        )


def check_routes(app: Flask, prefix: str) -> None:
    """Raise ConfigError if one of our routes collides with a route of the app."""
    for our_rule, app_rule in _collisions(app):
        raise ConfigError(
            "STREAM_URL_PREFIX",
            f"is {prefix!r}, so flask_stream's route {_described(our_rule)} collides with the "
            f"app's {_described(app_rule)}: set a prefix such as /ai, or move the app's route",
        )


def first_request_check() -> Callable[[], None]:
    """Return a `before_request` function that checks app and server once, and logs problems."""
    done = False

    def check() -> None:
        nonlocal done
        if done:
            return
        done = True
        for our_rule, app_rule in _collisions(current_app):
            logger.warning(
                "the app's route %s, added after FlaskStream.init_app, is hidden by "
                "flask_stream's %s: add it before, or set STREAM_URL_PREFIX",
                _described(app_rule),
                _described(our_rule),
            )
        warning = server_warning(request.environ)
        if warning is not None:
            warn_once(warning)

    return check


def server_warning(environ: Mapping[str, Any]) -> str | None:
    """Return a warning if the server of this request handles open streams badly, else None."""
    software = environ.get("SERVER_SOFTWARE", "")
    # Test clients do not name a server. gevent's own server reports one thread, but runs a greenlet
    # for each request.
    if not software or software.startswith("gevent"):
        return None
    if not environ.get("wsgi.multithread"):
        return ONE_REQUEST
    # gunicorn's gevent worker is fine, and so is `flask run`, which starts a thread when it needs
    # one.
    return None if uses_greenlets() or "werkzeug.socket" in environ else ONE_THREAD_EACH


def warn_once(warning: str) -> None:
    """Log a warning, once in each process."""
    if warning not in _logged:
        _logged.add(warning)
        logger.warning(warning)


def _collisions(app: Flask) -> Iterator[tuple[Rule, Rule]]:
    ours: dict[tuple[str, ...], list[Rule]] = {}
    rules = list(app.url_map.iter_rules())
    for rule in rules:
        if _is_ours(rule):
            ours.setdefault(_shape(rule), []).append(rule)
    for rule in rules:
        if not _is_ours(rule):
            for our_rule in ours.get(_shape(rule), []):
                if _methods(rule) & _methods(our_rule):
                    yield our_rule, rule


def _is_ours(rule: Rule) -> bool:
    return str(rule.endpoint).startswith(f"{BLUEPRINT}.")


def _shape(rule: Rule) -> tuple[str, ...]:
    """Return a key that is equal for rules that match the same URLs."""
    path = re.sub("<[^>]*>", "<>", rule.rule)
    return path, rule.subdomain or "", rule.host or "", str(rule.websocket)


def _methods(rule: Rule) -> set[str]:
    return set(rule.methods or ()) - {"HEAD", "OPTIONS"}


def _described(rule: Rule) -> str:
    return f"{' '.join(sorted(_methods(rule)))} {rule.rule} (endpoint {rule.endpoint!r})"
