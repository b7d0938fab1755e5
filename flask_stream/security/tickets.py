"""Tickets: a signed, short-lived right to start one run, and to read and cancel it.

For an `EventSource`, which sends no headers, and for pages of other sites, which have no session
here. A ticket names its run, so using it twice is attaching to what it has started: the browser's
own reconnect works, and whoever gets hold of it can make nobody pay for another answer.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from itsdangerous import BadSignature, SignatureExpired

from ..errors import Unauthorized
from .keys import Keys


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket says: whose run it is, of which chain, and where it belongs."""

    run: str
    chain: str
    principal: str
    conversation: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class OpenedTicket:
    """A genuine ticket, and whether it may still start its run."""

    ticket: Ticket
    fresh: bool
    issued: float
    expires: float


class Tickets:
    """Issues tickets that start a run within `age` seconds and read it for `reach` more."""

    def __init__(self, keys: Keys, age: float, reach: float) -> None:
        self._keys = keys
        self._age = age
        self._reach = reach

    def issue(self, ticket: Ticket) -> tuple[str, float]:
        """The ticket as text, fit for a URL, and until when it may start its run."""
        said = {name: value for name, value in asdict(ticket).items() if value is not None}
        return str(self._keys.serializer("ticket").dumps(said)), int(time.time()) + self._age

    def open(self, text: str) -> OpenedTicket:
        """What the ticket says. Raises Unauthorized for one that is not genuine, or too old."""
        try:
            said, issued = self._keys.serializer("ticket").loads(
                text, max_age=int(self._age + self._reach), return_timestamp=True
            )
        except SignatureExpired as error:
            raise Unauthorized("The ticket has expired.", field="ticket") from error
        except BadSignature as error:
            raise Unauthorized("The ticket is not genuine.", field="ticket") from error
        since = issued.timestamp()
        until = since + self._age
        return OpenedTicket(Ticket(**said), time.time() < until, since, until + self._reach)
