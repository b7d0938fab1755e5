"""Which pages may ask: this site's own, those of listed origins, and programs that are no page.

CORS keeps a foreign page from reading an answer. It does not keep it from asking, and asking is
what costs money: an image, a prefetch or a form of any site reaches the view. So whoever starts
a run is looked at before: by what the browser says of the request (`Sec-Fetch-*`), which no page
can forge, and where it says nothing (plain http, old browsers) by its `Origin`.
"""

from __future__ import annotations

import re

from flask import Blueprint, Request, Response
from flask_cors import CORS

from ..errors import ConfigError, Forbidden

#: As a browser writes it, or it would never match: in lower case, and nothing after it.
_ORIGIN = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
#: How browsers say that they fetch something that nobody has asked for yet.
_AHEAD = ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose")
_REFUSED = "This site's pages may not ask here. See STREAM_ORIGINS."


class Origins:
    """The origins in a setting's text. Raises ConfigError for what is no origin."""

    def __init__(self, setting: str) -> None:
        words = setting.split()
        #: Whether pages of any site may ask the chains that were added with `public=True`.
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
        """Raise Forbidden for a request that a page has made which may not ask.

        For whatever changes or costs something. `public` opens it to any site's pages, where
        the setting is `*`.
        """
        origin = request.headers.get("Origin")
        if origin in self.listed or (public and self.any):
            return
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            own = site == "same-origin"
        else:
            # No browser's, or a browser's that does not say: a page's POST has its Origin.
            own = origin is None or origin == request.host_url.rstrip("/")
        if not own:
            raise Forbidden(_REFUSED)

    def check_handshake(self, request: Request, *, public: bool = False) -> None:
        """Raise Forbidden for a WebSocket that a page wants to open which may not.

        A browser sends cookies and the `Origin` with it, and says nothing else of where it is from.
        """
        origin = request.headers.get("Origin")
        own = origin is None or origin == request.host_url.rstrip("/")
        if not own and origin not in self.listed and not (public and self.any):
            raise Forbidden(_REFUSED)

    def check_script(self, request: Request) -> None:
        """Raise Forbidden for a GET that is not a script's own `fetch` or `EventSource`.

        An image, a frame, a prefetch and an address that somebody clicks on are GETs as well,
        and whoever gets a person to make one would be asking in that person's name.
        """
        headers = request.headers
        kind, mode = headers.get("Sec-Fetch-Dest"), headers.get("Sec-Fetch-Mode")
        own = kind in (None, "empty") and mode in (None, "cors", "same-origin")
        if own and (kind is None or mode is None):
            own = any(kind == "text/event-stream" for kind, _ in request.accept_mimetypes)
        # A prefetch has no destination, either.
        own = own and not any(name in headers for name in _AHEAD)
        if not own:
            raise Forbidden(
                "A GET starts a run only for a script's own fetch or EventSource, or with "
                "Accept: text/event-stream. Or POST."
            )

    def protect(self, blueprint: Blueprint) -> None:
        """Have every answer say who may read it: the listed origins, exactly, and no other."""
        if self.any or self.listed:
            CORS(
                blueprint,
                # Not as texts: some of those would be taken for patterns, and none to the letter.
                origins="*" if self.any else [_exactly(one) for one in sorted(self.listed)],
                # A wildcard goes without cookies, always.
                supports_credentials=not self.any,
                send_wildcard=self.any,
                always_send=False,
                vary_header=False,
                allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
                expose_headers=["Location", "Retry-After"],
            )
        blueprint.after_request(vary)


def _exactly(origin: str) -> re.Pattern[str]:
    # flask-cors asks without regard to case, where origins have none but small letters.
    return re.compile(f"(?-i:{re.escape(origin)})\\Z")


def vary(response: Response) -> Response:
    # Also where no origin is listed: a cache must not carry an answer over to the day when one is.
    response.vary.add("Origin")
    return response
