"""Logging as JSON, one object on each line, so that no text can forge a log line.

A line has `time` (UTC), `level`, `logger` and `message`, and `run` if it is about a run. The text
of an exception may contain secrets such as a provider's key. Only the field `operator` has it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import Any

#: The query string of a URL in lines that other packages log. It is removed.
_QUERY = re.compile(r"(?<=[^\s\"?])\?[^\s\"]*")
#: The query string in werkzeug's lines, and the text of a request that it could not parse.
_WERKZEUG = re.compile(r"\?.*?(?=\"? HTTP/\d\.\d\" |$)| \('.*", re.DOTALL)
_RUN = "run %s"


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line, with escaped control characters."""

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
        operator: dict[str, Any] = {}
        if errors:
            operator["error"] = "; ".join(f"{type(error).__name__}: {error}" for error in errors)
        if record.exc_info and record.exc_info[0] is not None:
            operator["trace"] = self.formatException(record.exc_info)
        if operator:
            line["operator"] = operator
        return json.dumps(line)

    def _message(self, record: logging.LogRecord) -> str:
        args = record.args
        if isinstance(args, tuple) and any(isinstance(arg, BaseException) for arg in args):
            args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in args)
        message = str(record.msg)
        if args:
            message = message % args
        return (_WERKZEUG if record.name == "werkzeug" else _QUERY).sub("", message)


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread."""
    if args.exc_value is not None:
        trace = args.exc_type, args.exc_value, args.exc_traceback
        logging.getLogger("threads").error("a thread failed", exc_info=trace)


def configure_logging() -> None:
    """Log as JSON to standard error, unless the root logger already has handlers."""
    root = logging.getLogger()
    if root.handlers:
        return
    threading.excepthook = _log_thread_error
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # At level INFO these packages log the URL of every request.
    for name in ("httpx", "httpx2", "httpcore", "openai", "anthropic"):
        logging.getLogger(name).setLevel(logging.WARNING)
