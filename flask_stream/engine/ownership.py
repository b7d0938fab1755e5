"""Whose a run is: the one rule that every transport goes by.

A run belongs to its principal, and for anybody else there is no such run. A run that nobody in
particular has started belongs to whoever has its unguessable id.
"""

from __future__ import annotations

from ..errors import NotFound
from ..stores.base import Run

#: What the principal of nobody in particular begins with.
ANONYMOUS = "anyone:"


def is_anonymous(principal: str) -> bool:
    """Whether that is nobody in particular."""
    return not principal or principal.startswith(ANONYMOUS)


def may_access(who: str, owner: str) -> bool:
    """Whether `who` may read and cancel what `owner` has started."""
    return is_anonymous(owner) or who == owner


def require_access(who: str, run: Run) -> Run:
    """The run. Raises NotFound, as for a run that does not exist, when it is somebody else's."""
    if not may_access(who, run.principal):
        raise NotFound("There is no such run.", field="run")
    return run
