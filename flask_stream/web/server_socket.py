"""The server's socket of a request. Only this module knows where each server keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Where gunicorn and Werkzeug put the socket in a request's WSGI environment.
_KEYS = ("gunicorn.socket", "werkzeug.socket")


def server_socket(environ: Mapping[str, Any]) -> Any:
    """Return the connection's socket, or None if the server does not provide it.

    gunicorn's gevent worker provides a gevent socket, other servers one of the standard library.
    """
    return next((environ[key] for key in _KEYS if key in environ), None)
