"""gunicorn's settings and hooks, for any app that has a `FlaskStream`.

A `gunicorn.conf.py` takes them, after it has patched, and may then set others:

    from gevent import monkey; monkey.patch_all()
    from flask_stream.gunicorn import *

An app with the built-in chains on the embedded model takes `on_starting` and `on_exit` as well:
then the model is the master's, one for all workers.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from gunicorn.glogging import Logger

from .json_logs import JsonFormatter

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Config
    from gunicorn.workers.base import Worker

    from .chains.local_model import LocalServer
    from .service import Service

__all__ = [
    "worker_class",
    "workers",
    "worker_connections",
    "timeout",
    "graceful_timeout",
    "keepalive",
    "limit_request_line",
    "forwarded_allow_ips",
    "logger_class",
    "access_log_format",
    "post_worker_init",
    "worker_exit",
    "worker_int",
]

worker_class = "gevent"
# One holds thousands of streams; more are for more cores.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_connections = 10_000
# Of the worker's heartbeat, not of a stream: streams may live for ever.
timeout = 60
graceful_timeout = 30
keepalive = 5
# A question in a URL may be as long as gunicorn can read.
limit_request_line = 8190
# What proxies say is believed for STREAM_PROXIES alone.
forwarded_allow_ips = ""
logger_class = "flask_stream.gunicorn.JsonLogger"
# For those who want an access log: no query, which has questions and tickets, and no Referer.
access_log_format = "%(h)s %(m)s %(U)s %(s)s %(b)s %(M)s ms"


class JsonLogger(Logger):
    """gunicorn's logger, with lines of JSON like those of the service."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                handler.setFormatter(JsonFormatter())


_started: list[LocalServer] = []
_drains: list[threading.Thread] = []

#: Seconds before the master's SIGKILL at which a worker that shuts down ends its live runs.
MARGIN = 3.0


def on_starting(server: Arbiter) -> None:
    """Start the embedded model, once, before any worker and any request."""
    # Imported by the master, and after the patching: the workers get it all with their fork.
    from flask import Flask

    from .chains.local_model import ModelUnavailable
    from .chains.models import chosen, fallback, start_local
    from .config import Settings
    from .errors import ConfigError

    config = Flask(__name__).config
    config.from_prefixed_env()
    try:
        settings = Settings.load(config, {})
        names = [
            name
            for provider, name in (chosen(settings), fallback(settings) or ("", ""))
            if provider == "local"
        ]
        if names and settings.local_url is None:
            model = start_local(names[0], settings.model_folder)
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
    """Tune the garbage collector, warn of unfit workers, and prepare the worker's shutdown."""
    # LangChain's modules stay for ever, and scanning them in every full collection takes a third
    # of all time. Most of what a stream allocates is freed without the collector.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    worker.log.error_log.addFilter(_no_fault)
    service = _service(worker)
    if service is not None:
        # Not imported above: the master reads this file before it forks, without the app.
        from gunicorn.workers.gthread import ThreadWorker
        from gunicorn.workers.sync import SyncWorker

        from .web.host_app import ONE_REQUEST, ONE_THREAD_EACH, warn_once

        if isinstance(worker, SyncWorker):
            warn_once(ONE_REQUEST)
        elif isinstance(worker, ThreadWorker):
            warn_once(ONE_THREAD_EACH)
        service.access.quotas.limit_streams(worker.cfg.worker_connections)
    # gunicorn has no hook for being told to go. The master counts its grace from its signal, the
    # worker from its own last look; so the master's SIGKILL comes first, and no `finally` runs.
    drain = threading.Thread(target=_drain_at_end, args=(worker,), name="drain", daemon=True)
    drain.start()
    _drains.append(drain)


def _no_fault(record: logging.LogRecord) -> bool:
    """Log a client that missed its write deadline in one line, without a traceback."""
    if str(record.msg).startswith("Invalid request from ip="):
        # What follows is what the client has sent, a question perhaps.
        record.msg = str(record.msg).partition("'")[0].rstrip(" :")
    if record.exc_info and isinstance(record.exc_info[1], TimeoutError):
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "A client was too slow to read, and was let go.", ()
    return True


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Wait until the live runs have ended. gunicorn itself waits for open responses only."""
    worker.alive = False  # it may leave for another reason, such as a master that is gone
    for drain in _drains:
        drain.join()
    service = _service(worker)
    if service is not None:
        service.close()


def worker_int(worker: Worker) -> None:
    """End the live runs at once, after Ctrl-C."""
    _drain(worker, 0.0)


def _drain_at_end(worker: Any) -> None:
    while worker.alive:
        time.sleep(0.1)
    _drain(worker, max(0.0, worker.cfg.graceful_timeout - MARGIN))


def _drain(worker: Any, grace: float) -> None:
    service = _service(worker)
    if service is not None:
        service.drain(grace)


def _service(worker: Any) -> Service | None:
    # Not there when the app could not be loaded, or is none of Flask's.
    extensions: dict[str, Service] = getattr(worker.wsgi, "extensions", {})
    return extensions.get("flask_stream")
