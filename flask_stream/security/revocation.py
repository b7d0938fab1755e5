"""Revocation: signing a principal out everywhere."""

from __future__ import annotations

import time

from ..config import LONGEST
from ..errors import Unauthorized, unavailable_on_store_error
from ..stores.base import Store

#: Seconds that a revocation waits for another one of the same principal.
_LOCK_TIMEOUT = 5.0


class Revocation:
    """When principals were signed out, kept in the store for all workers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def revoke(self, principal: str) -> None:
        """Refuse the sessions, tokens and tickets that a principal has had until now.

        Raises StoreError, and TimeoutError if other revocations hold the lock for too long.
        """
        key = f"revoked:{principal}"
        with self._store.lock(key, _LOCK_TIMEOUT):  # two at once would add the time twice
            before = self._store.count(key, 0, 1)
            self._store.count(key, int(time.time()) - before, LONGEST)

    def check(self, principal: str, issued: float | None) -> None:
        """Raise Unauthorized for what was issued before its principal was signed out.

        `issued` is in seconds since the epoch, None where it is not known. Raises Unavailable when
        the store cannot be read.
        """
        # A site's users are signed out with their site.
        site, slash, _ = principal.partition("/")
        names = [principal, site] if slash and principal.startswith("site:") else [principal]
        with unavailable_on_store_error("revocations cannot be read"):
            revoked = max(self._store.count(f"revoked:{name}", 0, 1) for name in names)
        # Times in cookies and tokens are whole seconds: within the same second, refuse.
        if revoked and (issued is None or int(issued) <= revoked):
            raise Unauthorized("The sign-in has ended.")
