"""Log lines of the service: one JSON object each, so that no text can pass for a line of its own.

`time` (UTC), `level`, `logger`, `message`, and `run` where the line is about one. What an
exception says may hold anything, a provider's key included, and is for the operator alone: it
stands under `operator`, and nowhere else.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import Any

#: Where a line written by others shows a request: what follows the path is left out.
_QUERY = re.compile(r"(?<=[^\s\"?])\?[^\s\"]*")
#: How werkzeug shows a request that it could not read, and the query of one that it could.
_WERKZEUG = re.compile(r"\?.*?(?=\"? HTTP/\d\.\d\" |$)| \('.*", re.DOTALL)
_RUN = "run %s"


class JsonFormatter(logging.Formatter):
    """A record as a JSON object on one line, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        args = record.args if isinstance(record.args, tuple) else ()
        errors = [arg for arg in args if isinstance(arg, BaseException)]
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, str) and record.msg.startswith(_RUN) and args:
            line["run"] = str(args[0])
        line["message"] = self._message(record)
        told: dict[str, Any] = {}
        if errors:
            told["error"] = "; ".join(f"{type(error).__name__}: {error}" for error in errors)
        if record.exc_info and record.exc_info[0] is not None:
            told["trace"] = self.formatException(record.exc_info)
        if told:
            line["operator"] = told
        return json.dumps(line)

    def _message(self, record: logging.LogRecord) -> str:
        args = record.args
        if isinstance(args, tuple) and any(isinstance(arg, BaseException) for arg in args):
            args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in args)
        message = str(record.msg)
        if args:
            message = message % args
        return (_WERKZEUG if record.name == "werkzeug" else _QUERY).sub("", message)


def _failed(args: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread."""
    if args.exc_value is not None:
        trace = args.exc_type, args.exc_value, args.exc_traceback
        logging.getLogger("threads").error("a thread has failed", exc_info=trace)


def configure_logging() -> None:
    """Log as JSON to standard error, unless the root logger already has handlers."""
    root = logging.getLogger()
    if root.handlers:
        return
    threading.excepthook = _failed
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # At INFO they log every request with its URL.
    for chatty in ("httpx", "httpx2", "httpcore", "openai", "anthropic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
