"""Tickets: a signed, short-lived right to start one run, and to read and cancel it.

A ticket is for an `EventSource`, which cannot send headers, and for pages of other sites, which
have no session here. It contains the id of its run, so a second use attaches to the run that the
first one started. A browser can reconnect with it, and a stolen ticket cannot start a second run.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from itsdangerous import BadSignature, SignatureExpired

from ..errors import Unauthorized
from .keys import Keys


@dataclass(frozen=True, slots=True)
class Ticket:
    """The content of a ticket: the run, its chain, its principal, and its place."""

    run: str
    chain: str
    principal: str
    conversation: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class OpenedTicket:
    """A valid ticket. `fresh` is whether it may still start its run; times are epoch seconds."""

    ticket: Ticket
    fresh: bool
    issued: float
    expires: float


class Tickets:
    """Issues and opens tickets.

    A ticket may start its run for `age` seconds, and read it for `reach` seconds more.
    """

    def __init__(self, keys: Keys, age: float, reach: float) -> None:
        self._keys = keys
        self._age = age
        self._reach = reach

    def issue(self, ticket: Ticket) -> tuple[str, float]:
        """Return the ticket as URL-safe text, and when it expires, in seconds since the epoch."""
        said = {name: value for name, value in asdict(ticket).items() if value is not None}
        return str(self._keys.serializer("ticket").dumps(said)), int(time.time()) + self._age

    def open(self, text: str) -> OpenedTicket:
        """Return the content of a ticket. Raises Unauthorized if it is forged or has expired."""
        try:
            said, issued = self._keys.serializer("ticket").loads(
                text, max_age=int(self._age + self._reach), return_timestamp=True
            )
        except SignatureExpired as error:
            raise Unauthorized("The ticket has expired.", field="ticket") from error
        except BadSignature as error:
            raise Unauthorized("The ticket is not valid.", field="ticket") from error
        since = issued.timestamp()
        until = since + self._age
        return OpenedTicket(Ticket(**said), time.time() < until, since, until + self._reach)
