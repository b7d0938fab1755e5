"""The server's socket under a request: the one place that knows where a server keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Where gunicorn and Werkzeug put the socket in a request's WSGI environment.
_KEYS = ("gunicorn.socket", "werkzeug.socket")


def server_socket(environ: Mapping[str, Any]) -> Any:
    """Return the connection's socket, or None where the server does not give it.

    Under gunicorn's gevent worker it is gevent's socket; elsewhere the standard library's.
    """
    return next((environ[key] for key in _KEYS if key in environ), None)
