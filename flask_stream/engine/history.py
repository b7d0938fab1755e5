"""A conversation's history: a fold over its runs."""

from __future__ import annotations

import json
from typing import Any

from ..sources.base import NO_ANSWER, Source, Turn, resume_value
from ..stores.base import Run, Store
from .log_reader import PAGE

#: Characters of a question that name a conversation.
TITLE = 80
#: Characters of an input's text that clients are shown.
LONG = 20_000


def title(value: dict[str, Any]) -> str:
    """What a conversation is called that begins with this input."""
    words = " ".join(question(value)[: TITLE * 4].split())
    return words if len(words) <= TITLE else f"{words[: TITLE - 1]}…"


def shown(value: dict[str, Any]) -> dict[str, Any]:
    """An input as clients see it: what is very long, such as a document, by its beginning."""
    return {
        name: f"{text[:LONG]}…" if isinstance(text, str) and len(text) > LONG else text
        for name, text in value.items()
    }


def turns(store: Store, run: str | None, most: int) -> list[Turn]:
    """The conversation up to and with a run, oldest turn first; so many turns at most.

    Raises StoreError.
    """
    return past(store, run, most)[0]


def past(store: Store, run: str | None, most: int) -> tuple[list[Turn], list[tuple[str, int]]]:
    """The turns, and the runs that they are made of, nearest first, as in `Input.before`."""
    found: list[Turn] = []
    runs: list[tuple[str, int]] = []
    later, whole = "", None
    while run is not None and len(found) < most:
        stored = store.get(run)
        if stored is None:
            break
        runs.append((stored.id, len(found)))
        value, answer = json.loads(stored.input), text(store, stored) + later
        whole = stored.status == "done" if whole is None else whole
        if resume_value(value) is not NO_ANSWER:
            later = answer  # an answer to what the run before has asked, and part of its turn
        else:
            found.append(Turn(question(value), answer, whole))
            later, whole = "", None
        run = stored.parent
    return found[::-1], runs


def check_history(store: Store, source: Source, value: dict[str, Any], parent: Run | None) -> None:
    """Let a source refuse an input for what came before it; not while that is still to end."""
    if resume_value(value) is NO_ANSWER and not (parent and parent.live):
        before = parent.id if parent else None
        source.check_history(value, lambda: turns(store, before, source.turns))


def question(value: dict[str, Any]) -> str:
    """An input's text: its `question`, or else whatever text it has first."""
    named = value.get("question")
    if isinstance(named, str):
        return named
    return next((text for text in value.values() if isinstance(text, str)), "")


def asks(store: Store, run: Run) -> set[str]:
    """The ids of what a run has asked a person. Raises StoreError."""
    return {
        event.value()["id"] for event in store.read(run.id, 0, run.seq) if event.type == "interrupt"
    }


def text(store: Store, run: Run) -> str:
    """What a run has said: its messages, each whole, with a line between. Raises StoreError."""
    said: dict[str, list[str]] = {}
    after = 0
    while events := store.read(run.id, after, PAGE):
        after = events[-1].seq
        for event in events:
            if event.type == "chunk":
                data = event.value()
                if data["kind"] == "text":
                    said.setdefault(data["message"], []).append(data["content"])
            elif event.type == "reset":
                said.clear()
    return "\n\n".join("".join(message) for message in said.values())
