"""A conversation's history: a fold over its runs."""

from __future__ import annotations

import json

from .sources.base import Turn
from .stores.base import Run, Store
from .tail import PAGE

#: Earlier turns that a question brings along at most; what the model can take is the chain's own.
TURNS = 50


def turns(store: Store, run: str | None) -> list[Turn]:
    """The conversation up to and with a run, oldest turn first. Raises StoreError."""
    found: list[Turn] = []
    while run is not None and len(found) < TURNS:
        stored = store.get(run)
        if stored is None:
            break
        found.append(Turn(json.loads(stored.input)["question"], text(store, stored)))
        run = stored.parent
    return found[::-1]


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
