"""Listing, reading, renaming and removing conversations, which are trees of runs."""

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

#: Conversations on one page: the maximum, and the default.
MAX_LIMIT, DEFAULT_LIMIT = 100, 30
#: The most characters of a title.
MAX_TITLE = 200


class Conversations:
    """The conversations of one service.

    `cancel` stops a live run and waits up to a number of seconds for its end. `forget` deletes the
    state that a run's chain has saved.
    """

    def __init__(
        self, store: Store, cancel: Callable[[Run, float], None], forget: Callable[[Run], None]
    ) -> None:
        self._store = store
        self._cancel = cancel
        self._forget = forget

    def page(
        self, principal: str, limit: int = DEFAULT_LIMIT, before: str | None = None
    ) -> tuple[list[Conversation], str | None]:
        """Return a page of conversations, last updated first, and the `before` of the next page.

        The latter is None on the last page. Raises BadRequest for invalid arguments, Unavailable.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise BadRequest(f"limit must be a number from 1 to {MAX_LIMIT}.", field="limit")
        position = _parse_position(before) if before is not None else None
        if is_anonymous(principal):
            return [], None
        with _store_errors():
            found = self._store.conversations(principal, limit + 1, position)
        page = found[:limit]
        more = len(found) > limit
        return page, f"{page[-1].updated!r}:{page[-1].id}" if more else None

    def get(self, principal: str, id: str) -> tuple[Conversation, list[Run]]:
        """Return a conversation and its runs, oldest first. Raises NotFound, Unavailable."""
        with _store_errors():
            found = self._find(principal, id)
            return found, self._store.runs(principal, id)

    def rename(self, principal: str, id: str, title: str) -> Conversation:
        """Rename a conversation and return it. Raises NotFound, BadRequest, Unavailable."""
        # JSON may contain half of a surrogate pair, which cannot be stored.
        text = " ".join(title.encode("utf-8", "replace").decode().split())
        if not 1 <= len(text) <= MAX_TITLE:
            raise BadRequest(f"A title must have 1 to {MAX_TITLE} characters.", field="title")
        with _store_errors():
            self._find(principal, id)
            self._store.rename_conversation(principal, id, text)
            return self._find(principal, id)

    def remove(self, principal: str, id: str) -> None:
        """Stop a conversation's live runs, and remove it. Raises NotFound, Unavailable."""
        with _store_errors():
            self._find(principal, id)
            # The newest first, so that no queued run begins when the one before it ends.
            runs = self._store.runs(principal, id)
            for run in reversed(runs):
                if run.live:
                    self._cancel(run, STOP_WAIT)
            self._store.delete_conversation(principal, id)
        for run in {run.chain: run for run in runs}.values():
            self._forget(run)
        logger.info("conversation %s: removed", id)

    def _find(self, principal: str, id: str) -> Conversation:
        known = is_id(id) and not is_anonymous(principal)
        found = self._store.conversation(principal, id) if known else None
        if found is None:
            raise NotFound("There is no such conversation.", field="conversation")
        return found


def _store_errors() -> AbstractContextManager[None]:
    return unavailable_on_store_error(
        "conversations cannot be read", "Conversations cannot be read right now."
    )


def _parse_position(before: str) -> tuple[float, str]:
    updated, _, id = before.partition(":")
    try:
        when = float(updated)
    except ValueError:
        when = -1.0
    if not 0 <= when < float("inf") or not is_id(id):
        raise BadRequest("before must be the `next` of the previous page.", field="before")
    return when, id
