"""Who may start a run: a page of this site, a page of a listed origin, or no browser at all.

CORS keeps a foreign page from reading an answer. It does not keep it from asking, and asking is
what costs money: an image, a prefetch or a form of any site reaches the view.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from flask import Request

from .errors import ConfigError, Forbidden

_ORIGIN = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def listed(origins: str) -> list[str]:
    """The origins in a setting's text. Raises ConfigError for what is no origin."""
    found = origins.split()
    for origin in found:
        # As a browser writes it, or it would never match: in lower case, and nothing after it.
        if _ORIGIN.fullmatch(origin) is None:
            raise ConfigError(
                "STREAM_ORIGINS",
                f"has {origin!r}, and should have origins such as https://example.org",
            )
    return found


def check_start(request: Request, origins: Collection[str]) -> None:
    """Raise Forbidden for a request that a foreign page has made."""
    origin = request.headers.get("Origin")
    if origin in origins:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc == request.host
    if not own:
        raise Forbidden("This site's pages may not ask here. See STREAM_ORIGINS.")
