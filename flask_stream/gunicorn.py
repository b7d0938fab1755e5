"""Settings and hooks of gunicorn, for any app that has a `FlaskStream`.

Import them in `gunicorn.conf.py` after monkey-patching, and change them below if needed:

    from gevent import monkey; monkey.patch_all()
    from flask_stream.gunicorn import *

An app that uses the built-in chains with the embedded model imports `on_starting` and `on_exit` as
well. The master then starts one model for all workers.
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
# One worker handles thousands of streams. Use one for each core.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_connections = 10_000
# This is the timeout of the worker's heartbeat. It does not limit streams.
timeout = 60
graceful_timeout = 30
keepalive = 5
# gunicorn's highest limit, because a GET request has the question in its URL.
limit_request_line = 8190
# STREAM_PROXIES decides which proxies are trusted.
forwarded_allow_ips = ""
logger_class = "flask_stream.gunicorn.JsonLogger"
# If an access log is enabled, it has no query string, which may contain questions and tickets, and
# no Referer.
access_log_format = "%(h)s %(m)s %(U)s %(s)s %(b)s %(M)s ms"


class JsonLogger(Logger):
    """gunicorn's logger, with JSON lines like those of the service."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                handler.setFormatter(JsonFormatter())


_local_models: list[LocalServer] = []
_drains: list[threading.Thread] = []

#: A worker that shuts down ends its live runs this many seconds before the master's SIGKILL.
MARGIN = 3.0


def on_starting(server: Arbiter) -> None:
    """Start the embedded model before the first worker starts."""
    # Imported here because this module is imported before monkey-patching may be complete. The
    # workers inherit the modules when they are forked.
    from flask import Flask

    from .chains.local_model import ModelUnavailable
    from .chains.models import configured_model, fallback_model, start_local
    from .config import Settings
    from .errors import ConfigError

    config = Flask(__name__).config
    config.from_prefixed_env()
    try:
        settings = Settings.load(config, {})
        names = [
            name
            for provider, name in (configured_model(settings), fallback_model(settings) or ("", ""))
            if provider == "local"
        ]
        if names and settings.local_url is None:
            model = start_local(names[0], settings.model_folder)
            os.environ["FLASK_STREAM_LOCAL_URL"] = model.url
            os.environ["FLASK_STREAM_LOCAL_KEY"] = model.api_key
            _local_models.append(model)
    except (ConfigError, ModelUnavailable) as error:
        sys.exit(f"flask_stream: {error}")


def on_exit(server: Arbiter) -> None:
    """Stop the embedded model."""
    for model in _local_models:
        model.stop()


def post_worker_init(worker: Worker) -> None:
    """Tune the garbage collector, warn about unsuitable workers, and prepare the shutdown."""
    # LangChain's modules are never freed, and scanning them in every full collection takes a third
    # of the CPU time. Reference counting frees most of what a stream allocates.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    worker.log.error_log.addFilter(_shorten_client_errors)
    service = _service(worker)
    if service is not None:
        # Imported here because the master reads this file without loading the app.
        from gunicorn.workers.gthread import ThreadWorker
        from gunicorn.workers.sync import SyncWorker

        from .web.host_app import ONE_REQUEST, ONE_THREAD_EACH, warn_once

        if isinstance(worker, SyncWorker):
            warn_once(ONE_REQUEST)
        elif isinstance(worker, ThreadWorker):
            warn_once(ONE_THREAD_EACH)
        service.access.quotas.limit_streams(worker.cfg.worker_connections)
    # gunicorn has no hook for the moment at which a worker should stop. The grace period of the
    # master begins with its signal, that of the worker begins later. Without this thread the
    # master's SIGKILL would come first, and no `finally` would run.
    drain = threading.Thread(target=_drain_at_end, args=(worker,), name="drain", daemon=True)
    drain.start()
    _drains.append(drain)


def _shorten_client_errors(record: logging.LogRecord) -> bool:
    """Log errors of clients in one line, without a traceback and without what they sent."""
    if str(record.msg).startswith("Invalid request from ip="):
        # The rest of the line is what the client sent, possibly a question.
        record.msg = str(record.msg).partition("'")[0].rstrip(" :")
    if record.exc_info and isinstance(record.exc_info[1], TimeoutError):
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "A client read too slowly and was disconnected.", ()
    return True


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Wait until the live runs have ended. gunicorn itself waits only for open responses."""
    worker.alive = False  # it is still true if the worker exits because the master died
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
    # There is no service if the app failed to load or is not a Flask app.
    extensions: dict[str, Service] = getattr(worker.wsgi, "extensions", {})
    return extensions.get("flask_stream")
