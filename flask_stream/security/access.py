"""Access: who stands before us, what they may start, and which runs are theirs.

Brings together where a request comes from (`origins`), who it says that it is (`identity`,
`tickets`) and how much that one may have (`quotas`). Every transport asks here, and only here.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from dataclasses import dataclass

from flask import Flask, Request, Response

from ..config import Settings
from ..engine.ownership import ANONYMOUS
from ..errors import (
    BadRequest,
    Forbidden,
    NotFound,
    Unauthorized,
    Unavailable,
)
from ..stores.base import Store
from .identity import Auth, Identity, bearer_token, make_auth, site_identity
from .keys import Keys
from .origins import Origins
from .quotas import Quotas
from .revocation import Revocation
from .tickets import OpenedTicket, Tickets

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a request: the principal whose runs these are, and from which address.

    `known` is whether it is somebody, and not anyone; since `issued`, until `expires`. Who comes
    with a ticket has the one run of that ticket, and acts for whoever the ticket was made for.
    """

    principal: str
    address: str
    known: bool
    carried: bool = False
    issued: float | None = None
    expires: float | None = None
    ticket: OpenedTicket | None = None

    def check_run(self, run: str) -> None:
        """Raise NotFound for a run that is not the ticket's own."""
        if self.ticket is not None and self.ticket.ticket.run != run:
            raise NotFound("There is no such run.", field="run")


class Access:
    """The access of one app. Raises ConfigError for settings that cannot work."""

    def __init__(self, app: Flask, settings: Settings, store: Store) -> None:
        self.origins = Origins(settings.origins)
        self.keys = Keys(app, settings.api_keys)
        self.quotas = Quotas(settings, store)
        self._auth: Auth = make_auth(settings, self.keys)
        self.tickets = Tickets(self.keys, settings.ticket_age, settings.run_timeout)
        self.revocation = Revocation(store)
        self._app = app
        self._proxies = settings.proxies
        if self.origins.any:
            logger.warning(
                "STREAM_ORIGINS is *: pages of any site may ask the chains added with "
                "public=True, and no others"
            )

    # Who

    def visitor(self, request: Request) -> Caller:
        """Who made this request.

        Raises Unauthorized for a token, a key or a ticket that is not, or no longer, good, and
        Unavailable when that cannot be told.
        """
        address = self._address(request)
        text = request.args.get("ticket")
        if text is not None:
            opened = self.tickets.open(text)
            found = Identity(opened.ticket.principal, opened.issued, opened.expires, carried=True)
        else:
            opened = None
            known = site_identity(request, self.keys) or self._auth.identify(request)
            if known is None:
                fingerprint = self.keys.fingerprint(f"address {address}")
                return Caller(f"{ANONYMOUS}{fingerprint}", address, known=False)
            found = known
        self.revocation.check(found.principal, found.issued)
        who = found.principal
        return Caller(who, address, True, found.carried, found.issued, found.expires, opened)

    def still(self, request: Request, before: Caller) -> str | None:
        """Why who made this request may no longer read; None if they may.

        For streams that stay open: a token runs out, a session is revoked, a person signs out.
        """
        if not before.known:
            return None
        try:
            self.revocation.check(before.principal, before.issued)
            # As a request that is made now: what was remembered of this one counts no more.
            environ = {k: v for k, v in request.environ.items() if k != "werkzeug.request"}
            with self._app.request_context(environ) as now:
                visitor = self.visitor(now.request)
        except Unauthorized as error:
            return error.detail
        except Unavailable:
            # Nobody is sent away because we cannot tell; but this much we can.
            over = before.expires is not None and time.time() >= before.expires
            return "The sign-in has expired." if over else None
        return None if visitor.principal == before.principal else "The sign-in has ended."

    def _address(self, request: Request) -> str:
        if not self._proxies and "X-Forwarded-For" in request.headers:
            self._proxies = -1  # once
            logger.warning(
                "requests come through a proxy, and are all limited as one address: "
                "set STREAM_PROXIES to how many proxies there are"
            )
        address = request.remote_addr or ""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return address or "nowhere"  # a Unix socket has none
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if isinstance(found, ipaddress.IPv6Address):
            # One subscriber has a whole /64.
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found)

    # What they may do

    def check_change(self, request: Request) -> None:
        """Raise Forbidden where a foreign page's request would change something.

        Not for those who carry a token or a ticket, which no browser adds by itself.
        """
        if bearer_token(request) is None and "ticket" not in request.args:
            # Whether it may ask a public chain is looked at when it asks.
            self.origins.check_page(request, public=True)

    def check_start(self, request: Request, visitor: Caller, *, public: bool) -> None:
        """Raise Forbidden, or Unauthorized, where this request may not start a run."""
        if request.method == "GET":
            self.origins.check_script(request)
        if not visitor.carried:
            self.origins.check_page(request, public=public)
        self.check_known(visitor, public=public)

    def check_handshake(self, request: Request, visitor: Caller, *, public: bool) -> None:
        """Raise Forbidden, or Unauthorized, where this WebSocket may not start runs."""
        if not visitor.carried:
            self.origins.check_handshake(request, public=public)
        self.check_known(visitor, public=public)

    def check_known(self, visitor: Caller, *, public: bool) -> None:
        """Raise Unauthorized for who is nobody, where nobody may ask."""
        if not visitor.known and not public and not self._auth.open:
            raise Unauthorized("Sign in to ask here.")

    def welcome(self, request: Request, response: Response) -> None:
        """Give a visitor of our own pages a session, where that is how people are known."""
        try:
            self.visitor(request)
        except Unauthorized:
            self._auth.welcome(request, response, anew=True)
        else:
            self._auth.welcome(request, response, anew=False)

    # Tickets

    def issuer(self, visitor: Caller, user: str | None) -> str:
        """Whose run a ticket made for this visitor starts: theirs, or their site's user's.

        Raises Unauthorized for anyone, Forbidden for who has only a ticket, and BadRequest.
        """
        if not visitor.known:
            raise Unauthorized("Sign in, or send an API key, to have a ticket.")
        if visitor.ticket is not None:
            raise Forbidden("A ticket makes no tickets.")
        if user is None:
            return visitor.principal
        if not visitor.principal.startswith("site:"):
            raise BadRequest("Only a site with an API key names its users.", field="user")
        return f"{visitor.principal}/{user}"
