"""Who owns a run: the rule that every transport follows.

A run belongs to its principal. For other principals it does not exist. A run of an anonymous
principal can be read and cancelled by everybody who knows its id, which cannot be guessed.
"""

from __future__ import annotations

from ..errors import NotFound
from ..stores.base import Run

#: The prefix of anonymous principals: callers who are not signed in.
ANONYMOUS_PREFIX = "anyone:"


def is_anonymous(principal: str) -> bool:
    """Return whether a principal is anonymous."""
    return not principal or principal.startswith(ANONYMOUS_PREFIX)


def may_access(principal: str, owner: str) -> bool:
    """Return whether `principal` may read and cancel the runs of `owner`."""
    return is_anonymous(owner) or principal == owner


def require_access(principal: str, run: Run) -> Run:
    """Return the run. Raises NotFound, as for an unknown id, if `principal` may not access it."""
    if not may_access(principal, run.principal):
        raise NotFound("There is no such run.", field="run")
    return run
