"""Conversations: trees of runs that belong to one principal; listed, read, renamed, removed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from ..errors import BadRequest, NotFound, unavailable_on_store_error
from ..events import is_id
from ..stores.base import Conversation, Run, Store
from .ownership import is_anonymous
from .runner import STOP_WAIT

logger = logging.getLogger(__name__)

#: Conversations in one page, at most and if nothing is said.
MOST, USUAL = 100, 30
#: Characters of a title.
LONGEST = 200


class Conversations:
    """The conversations of one service.

    `cancel` stops a live run and waits for it; `forget` has a run's chain forget all of it.
    """

    def __init__(
        self, store: Store, cancel: Callable[[Run, float], None], forget: Callable[[Run], None]
    ) -> None:
        self._store = store
        self._cancel = cancel
        self._forget = forget

    def page(
        self, who: str, limit: int = USUAL, before: str | None = None
    ) -> tuple[list[Conversation], str | None]:
        """A page of them, the last updated first, and what `before` is for the next page.

        Raises BadRequest for a page that cannot be, and Unavailable.
        """
        if not 1 <= limit <= MOST:
            raise BadRequest(f"limit is a number from 1 to {MOST}.", field="limit")
        place = _place(before) if before is not None else None
        if is_anonymous(who):
            return [], None
        with _reading():
            found = self._store.conversations(who, limit + 1, place)
        page = found[:limit]
        more = len(found) > limit
        return page, f"{page[-1].updated!r}:{page[-1].id}" if more else None

    def get(self, who: str, id: str) -> tuple[Conversation, list[Run]]:
        """One, and all of its runs by when they were started. Raises NotFound, Unavailable."""
        with _reading():
            found = self._found(who, id)
            return found, self._store.runs(who, id)

    def rename(self, who: str, id: str, title: str) -> Conversation:
        """Give it another title. Raises NotFound, BadRequest, Unavailable."""
        # Half of a surrogate pair is JSON, and no text.
        words = " ".join(title.encode("utf-8", "replace").decode().split())
        if not 1 <= len(words) <= LONGEST:
            raise BadRequest(f"A title has 1 to {LONGEST} characters.", field="title")
        with _reading():
            self._found(who, id)
            self._store.rename_conversation(who, id, words)
            return self._found(who, id)

    def remove(self, who: str, id: str) -> None:
        """Stop what is live in it, and remove it with its runs. Raises NotFound, Unavailable."""
        with _reading():
            self._found(who, id)
            # The last one first: none that waits for another is to begin when that ends.
            runs = self._store.runs(who, id)
            for run in reversed(runs):
                if run.live:
                    self._cancel(run, STOP_WAIT)
            self._store.delete_conversation(who, id)
        for run in {run.chain: run for run in runs}.values():
            self._forget(run)
        logger.info("conversation %s: removed", id)

    def _found(self, who: str, id: str) -> Conversation:
        known = is_id(id) and not is_anonymous(who)
        found = self._store.conversation(who, id) if known else None
        if found is None:
            raise NotFound("There is no such conversation.", field="conversation")
        return found


def _reading() -> AbstractContextManager[None]:
    return unavailable_on_store_error(
        "conversations cannot be had", "Conversations cannot be read right now."
    )


def _place(before: str) -> tuple[float, str]:
    updated, _, id = before.partition(":")
    try:
        when = float(updated)
    except ValueError:
        when = -1.0
    if not 0 <= when < float("inf") or not is_id(id):
        raise BadRequest("before is what `next` was in the page before.", field="before")
    return when, id
