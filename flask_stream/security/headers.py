"""Security headers of every response."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Response

from ..errors import ConfigError

_ANCESTOR = re.compile(r"'self'|https?://[a-z0-9*_.:\[\]-]+")


def headers(frame_ancestors: str) -> Callable[[Response], Response]:
    """Return a function that adds the headers to a response.

    `frame_ancestors` is the setting's text. Raises ConfigError for a word that is not an origin.
    """
    ancestors = frame_ancestors.split()
    for ancestor in ancestors:
        if _ANCESTOR.fullmatch(ancestor) is None:
            raise ConfigError(
                "STREAM_FRAME_ANCESTORS",
                f"has {ancestor!r}, and should have origins such as https://example.org, or 'self'",
            )
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors " + (" ".join(ancestors) or "'none'"),
        ]
    )

    def apply(response: Response) -> Response:
        # setdefault: a view may have set its own value.
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("Cache-Control", "no-store")
        if response.mimetype == "text/html":
            response.headers.setdefault("Content-Security-Policy", policy)
        return response

    return apply
