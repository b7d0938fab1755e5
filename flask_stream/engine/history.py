"""The history of a conversation, assembled from its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..sources.base import NO_ANSWER, Source, Turn, resume_value
from ..stores.base import Run, Store
from .answer import answer_of

#: The most characters of a title that is made from the first question.
TITLE_LENGTH = 80
#: The most characters of a text in an input that clients are shown.
SHOWN_LENGTH = 20_000


def title(value: dict[str, Any]) -> str:
    """Return the title of a new conversation that begins with this input."""
    words = " ".join(question(value)[: TITLE_LENGTH * 4].split())
    return words if len(words) <= TITLE_LENGTH else f"{words[: TITLE_LENGTH - 1]}…"


def shown(value: dict[str, Any]) -> dict[str, Any]:
    """Return an input as clients see it, with very long texts such as documents cut."""
    return {
        name: f"{text[:SHOWN_LENGTH]}…"
        if isinstance(text, str) and len(text) > SHOWN_LENGTH
        else text
        for name, text in value.items()
    }


def turns(store: Store, branch: Sequence[Run], limit: int) -> list[Turn]:
    """Return the last `limit` turns of a branch (see `past`), oldest first. Raises StoreError."""
    return past(store, branch, limit)[0]


def past(
    store: Store, branch: Sequence[Run], limit: int
) -> tuple[list[Turn], list[tuple[str, int]]]:
    """Return the turns of a branch, oldest first, and the runs they are made of.

    `branch` is what `Store.branch` returned: the newest run and the runs that it follows. More are
    read if needed. The returned runs are newest first, as in `Input.before`. Raises StoreError.
    """
    found: list[Turn] = []
    runs: list[tuple[str, int]] = []
    later, whole = "", None
    while branch and len(found) < limit:
        for run in branch:
            runs.append((run.id, len(found)))
            value, answer = json.loads(run.input), answer_of(store, run) + later
            whole = run.status == "done" if whole is None else whole
            if resume_value(value) is not NO_ANSWER:
                later = answer  # it continues the turn that had the interrupt
            else:
                found.append(Turn(question(value), answer, whole))
                later, whole = "", None
                if len(found) == limit:
                    break
        else:
            parent = branch[-1].parent
            branch = store.branch(parent, limit) if parent else []
    return found[::-1], runs


def check_history(store: Store, source: Source, value: dict[str, Any], parent: Run | None) -> None:
    """Let a source refuse an input because of the earlier turns, unless the parent is live."""

    def earlier() -> list[Turn]:
        branch = store.branch(parent.id, source.turns) if parent else []
        return turns(store, branch, source.turns)

    if resume_value(value) is NO_ANSWER and not (parent and parent.live):
        source.check_history(value, earlier)


def question(value: dict[str, Any]) -> str:
    """Return the question in an input: its field `question`, or else its first text."""
    named = value.get("question")
    if isinstance(named, str):
        return named
    return next((text for text in value.values() if isinstance(text, str)), "")


def interrupt_ids(store: Store, run: Run) -> set[str]:
    """Return the ids of a run's interrupts. Raises StoreError."""
    return {
        event.value()["id"] for event in store.read(run.id, 0, run.seq) if event.type == "interrupt"
    }
