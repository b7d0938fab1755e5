"""Access: who makes a request, and what that caller may start and read.

Combines the rules for origins (`origins`), for identities (`identity`, `tickets`, `revocation`) and
for limits (`quotas`). Every transport goes through this module.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from dataclasses import dataclass

from flask import Flask, Request, Response

from ..config import Settings
from ..engine.ownership import ANONYMOUS_PREFIX
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
    """The caller of a request.

    `principal` owns the runs that the caller starts. `address` is the client's, for limits.
    `identified` is False for a caller without credentials. `explicit` is True when a script sent
    the credential (a token or a ticket), False for a cookie, which a browser sends by itself.
    `issued` and `expires` are in seconds since the epoch. A caller with a `ticket` may use that
    ticket's run only, and acts for the principal for whom the ticket was made.
    """

    principal: str
    address: str
    identified: bool
    explicit: bool = False
    issued: float | None = None
    expires: float | None = None
    ticket: OpenedTicket | None = None

    def check_run(self, run: str) -> None:
        """Raise NotFound if the caller has a ticket for another run."""
        if self.ticket is not None and self.ticket.ticket.run != run:
            raise NotFound("There is no such run.", field="run")


class Access:
    """The access rules of one app. Raises ConfigError for settings that cannot work."""

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
                "STREAM_ORIGINS is *: pages of any site may start runs of the chains that were "
                "added with public=True"
            )

    # Identity

    def caller(self, request: Request) -> Caller:
        """Return the caller of a request.

        Raises Unauthorized for a token, key or ticket that is not valid or has expired, and
        Unavailable when that cannot be checked.
        """
        address = self._address(request)
        text = request.args.get("ticket")
        if text is not None:
            opened = self.tickets.open(text)
            found = Identity(opened.ticket.principal, opened.issued, opened.expires, explicit=True)
        else:
            opened = None
            identity = site_identity(request, self.keys) or self._auth.identify(request)
            if identity is None:
                fingerprint = self.keys.fingerprint(f"address {address}")
                return Caller(f"{ANONYMOUS_PREFIX}{fingerprint}", address, identified=False)
            found = identity
        self.revocation.check(found.principal, found.issued)
        who = found.principal
        return Caller(who, address, True, found.explicit, found.issued, found.expires, opened)

    def recheck(self, request: Request, before: Caller) -> str | None:
        """Return why an open stream's caller may no longer read, as a sentence; None if it may.

        A token may expire, a session may be revoked, and a person may sign out.
        """
        if not before.identified:
            return None
        try:
            self.revocation.check(before.principal, before.issued)
            # In a new request context, so that nothing cached for the first one is used.
            environ = {k: v for k, v in request.environ.items() if k != "werkzeug.request"}
            with self._app.request_context(environ) as now:
                caller = self.caller(now.request)
        except Unauthorized as error:
            return error.detail
        except Unavailable:
            # An outage ends no stream; an expiry that is known does.
            over = before.expires is not None and time.time() >= before.expires
            return "The sign-in has expired." if over else None
        return None if caller.principal == before.principal else "The sign-in has ended."

    def _address(self, request: Request) -> str:
        if not self._proxies and "X-Forwarded-For" in request.headers:
            self._proxies = -1  # warn once
            logger.warning(
                "requests come through a proxy, so limits count all of them as one address: "
                "set STREAM_PROXIES to the number of proxies"
            )
        address = request.remote_addr or ""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return address or "nowhere"  # a Unix socket has no address
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if isinstance(found, ipaddress.IPv6Address):
            # One subscriber usually has a whole /64 network.
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found)

    # Permissions

    def check_change(self, request: Request) -> None:
        """Raise Forbidden for a request of another site's page that would change something.

        A request with a token or a ticket passes: a browser adds neither by itself.
        """
        if bearer_token(request) is None and "ticket" not in request.args:
            # Whether the page may start runs is checked when it starts one.
            self.origins.check_page(request, public=True)

    def check_start(self, request: Request, caller: Caller, *, public: bool) -> None:
        """Raise Forbidden or Unauthorized if this request may not start a run.

        `public` is whether the chain was added with `public=True`.
        """
        if request.method == "GET":
            self.origins.check_script(request)
        if not caller.explicit:
            self.origins.check_page(request, public=public)
        self.check_identified(caller, public=public)

    def check_handshake(self, request: Request, caller: Caller, *, public: bool) -> None:
        """Raise Forbidden or Unauthorized if this WebSocket may not start runs."""
        if not caller.explicit:
            self.origins.check_handshake(request, public=public)
        self.check_identified(caller, public=public)

    def check_identified(self, caller: Caller, *, public: bool) -> None:
        """Raise Unauthorized if the caller has no credentials and the chain requires them."""
        if not caller.identified and not public and not self._auth.open:
            raise Unauthorized("Sign in to start a run here.")

    def set_session(self, request: Request, response: Response) -> None:
        """Set a session cookie on a page's response, if callers are known by sessions."""
        try:
            self.caller(request)
        except Unauthorized:
            self._auth.set_session(request, response, renew=True)
        else:
            self._auth.set_session(request, response, renew=False)

    # Tickets

    def ticket_principal(self, caller: Caller, user: str | None) -> str:
        """Return the principal whose run a new ticket starts: the caller, or a user of its site.

        Raises Unauthorized without credentials, Forbidden for a caller with a ticket, and
        BadRequest for a `user` that is not a site's.
        """
        if not caller.identified:
            raise Unauthorized("Sign in, or send an API key, to get a ticket.")
        if caller.ticket is not None:
            raise Forbidden("A ticket cannot be used to make another ticket.")
        if user is None:
            return caller.principal
        if not caller.principal.startswith("site:"):
            raise BadRequest("Only a site with an API key may name a user.", field="user")
        return f"{caller.principal}/{user}"
