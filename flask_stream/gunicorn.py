"""gunicorn's settings and hooks, for any app that has a `FlaskStream`.

A `gunicorn.conf.py` takes them, after it has patched, and may then set others:

    from gevent import monkey; monkey.patch_all()
    from flask_stream.gunicorn import *
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

    from .chains.local import LocalServer

__all__ = [
    "worker_class",
    "workers",
    "worker_connections",
    "timeout",
    "graceful_timeout",
    "keepalive",
    "on_starting",
    "on_exit",
    "post_worker_init",
]

worker_class = "gevent"
# Logs in memory are those of one process.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_connections = 10_000
# Of the worker's heartbeat, not of a stream: streams may live for ever.
timeout = 60
graceful_timeout = 30
keepalive = 5

_started: list[LocalServer] = []

#: Seconds before the master's SIGKILL at which a worker that goes ends what still runs.
MARGIN = 3.0


def on_starting(server: Arbiter) -> None:
    """Start the embedded model, once, before any worker and any request."""
    # Imported by the master, and after the patching: the workers get it all with their fork.
    from flask import Flask

    from .chains.local import ModelUnavailable
    from .chains.models import chosen, start_local
    from .config import Settings
    from .errors import ConfigError

    config = Flask(__name__).config
    config.from_prefixed_env()
    try:
        settings = Settings.load(config, {})
        provider, name = chosen(settings)
        if provider == "local" and settings.local_url is None:
            model = start_local(name, settings.cache)
            os.environ["FLASK_STREAM_LOCAL_URL"] = model.url
            os.environ["FLASK_STREAM_LOCAL_KEY"] = model.api_key
            _started.append(model)
    except (ConfigError, ModelUnavailable) as error:
        sys.exit(f"flask_stream: {error}")


def on_exit(server: Arbiter) -> None:
    """Stop the embedded model."""
    for model in _started:
        model.stop()


def post_worker_init(worker: Worker) -> None:
    """Notice that the worker is told to go while there is still time to end its streams well."""
    # gunicorn has no hook for that: the master counts from its signal, the worker from its own
    # last look, and so the master's SIGKILL comes first and no `finally` runs.
    threading.Thread(target=_drain_at_end, args=(worker,), name="drain", daemon=True).start()


def _drain_at_end(worker: Any) -> None:
    while worker.alive:
        time.sleep(0.1)
    service = getattr(worker.wsgi, "extensions", {}).get("flask_stream")
    if service is not None:
        service.drain(max(0.0, worker.cfg.graceful_timeout - MARGIN))
