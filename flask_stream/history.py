"""A conversation's history: a fold over its runs."""

from __future__ import annotations

import json
from typing import Any

from .sources.base import Source, Turn
from .stores.base import Run, Store
from .tail import PAGE

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


def turns(store: Store, run: str | None, most: int = Source.turns) -> list[Turn]:
    """The conversation up to and with a run, oldest turn first. Raises StoreError."""
    found: list[Turn] = []
    later = ""
    while run is not None and len(found) < most:
        stored = store.get(run)
        if stored is None:
            break
        value, answer = json.loads(stored.input), text(store, stored) + later
        if value.keys() == {"resume"}:
            later = answer  # an answer to what the run before has asked, and part of its turn
        else:
            found.append(Turn(question(value), answer))
            later = ""
        run = stored.parent
    return found[::-1]


def check_history(store: Store, source: Source, value: dict[str, Any], parent: Run | None) -> None:
    """Let a source refuse an input for what came before it; not while that is still to end."""
    if value.keys() != {"resume"} and not (parent and parent.live):
        source.check_history(value, lambda: turns(store, parent.id if parent else None))


def question(value: dict[str, Any]) -> str:
    """An input's text: its `question`, or else whatever text it has first."""
    named = value.get("question")
    if isinstance(named, str):
        return named
    return next((text for text in value.values() if isinstance(text, str)), "")


def text(store: Store, run: Run) -> str:
    """What a run has said. Raises StoreError."""
    said: list[str] = []
    after = 0
    while events := store.read(run.id, after, PAGE):
        after = events[-1].seq
        for event in events:
            if event.type == "chunk":
                data = event.value()
                if data["kind"] == "text":
                    said.append(data["content"])
            elif event.type == "reset":
                said.clear()
    return "".join(said)
