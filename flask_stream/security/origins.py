"""Origins: which pages may start runs.

Pages of this site and of the listed origins may, and so may programs that are not web pages. CORS
keeps another site's page from reading an answer. It does not keep the page from sending the
request, and the request is what costs money: an image, a prefetch or a form of any site reaches the
view. So each start is checked first: by the browser's `Sec-Fetch-*` headers, which a page cannot
forge, and where the browser sends none (plain http, old browsers) by `Origin`.
"""

from __future__ import annotations

import re

from flask import Blueprint, Request, Response
from flask_cors import CORS

from ..errors import ConfigError, Forbidden

#: An origin as browsers write it: in lower case, without a path. Others would never match.
_ORIGIN = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
#: Headers by which browsers mark a prefetch.
_AHEAD = ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose")
_REFUSED = "Pages of this site may not start runs here. See STREAM_ORIGINS."


class Origins:
    """The origins in a setting's text. Raises ConfigError for a word that is not an origin."""

    def __init__(self, setting: str) -> None:
        words = setting.split()
        #: Whether pages of any site may use the chains that were added with `public=True`.
        self.any = "*" in words
        self.listed = frozenset(word for word in words if word != "*")
        for origin in self.listed:
            if _ORIGIN.fullmatch(origin) is None:
                raise ConfigError(
                    "STREAM_ORIGINS",
                    f"has {origin!r}, and should have origins such as https://example.org, in "
                    "small letters and without a path or a final /",
                )

    def check_page(self, request: Request, *, public: bool = False) -> None:
        """Raise Forbidden for a request of a page that is neither ours nor of a listed origin.

        For every request that changes or costs something. With `public`, pages of any site pass
        where the setting is `*`.
        """
        origin = request.headers.get("Origin")
        if origin in self.listed or (public and self.any):
            return
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            own = site == "same-origin"
        else:
            # A program, or a browser without Sec-Fetch headers: its POST has an Origin.
            own = origin is None or origin == request.host_url.rstrip("/")
        if not own:
            raise Forbidden(_REFUSED)

    def check_handshake(self, request: Request, *, public: bool = False) -> None:
        """Raise Forbidden for a WebSocket of a page that may not connect.

        With a WebSocket, a browser sends cookies and `Origin`, and no `Sec-Fetch-*` headers.
        """
        origin = request.headers.get("Origin")
        own = origin is None or origin == request.host_url.rstrip("/")
        if not own and origin not in self.listed and not (public and self.any):
            raise Forbidden(_REFUSED)

    def check_script(self, request: Request) -> None:
        """Raise Forbidden for a GET that is not a script's `fetch` or `EventSource`.

        Images, frames, prefetches and links send GETs too. Another site could use one of them to
        start a run in a caller's name.
        """
        headers = request.headers
        kind, mode = headers.get("Sec-Fetch-Dest"), headers.get("Sec-Fetch-Mode")
        own = kind in (None, "empty") and mode in (None, "cors", "same-origin")
        if own and (kind is None or mode is None):
            own = any(kind == "text/event-stream" for kind, _ in request.accept_mimetypes)
        # A prefetch has no destination either.
        own = own and not any(name in headers for name in _AHEAD)
        if not own:
            raise Forbidden(
                "A GET starts a run only for a script's own fetch or EventSource, or with "
                "Accept: text/event-stream. Or POST."
            )

    def protect(self, blueprint: Blueprint) -> None:
        """Add CORS headers to every response: the listed origins may read it, and no others."""
        if self.any or self.listed:
            CORS(
                blueprint,
                # flask-cors takes some texts for patterns, and ignores case: pass exact patterns.
                origins="*" if self.any else [_exactly(one) for one in sorted(self.listed)],
                # CORS does not allow a wildcard with credentials.
                supports_credentials=not self.any,
                send_wildcard=self.any,
                always_send=False,
                vary_header=False,
                allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
                expose_headers=["Location", "Retry-After"],
            )
        blueprint.after_request(vary)


def _exactly(origin: str) -> re.Pattern[str]:
    # flask-cors compiles patterns to ignore case; `(?-i:…)` switches that off.
    return re.compile(f"(?-i:{re.escape(origin)})\\Z")


def vary(response: Response) -> Response:
    # Even if no origin is listed now: a cache may keep the response until one is.
    response.vary.add("Origin")
    return response
