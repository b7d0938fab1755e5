"""A chain that was added: its source and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..sources.base import Source


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that can be asked by name.

    `attempts` is how many workers may try a run in all: one, or more if a run whose worker is
    gone is to be started anew. `public` opens it to those who are not signed in. `multitask` is
    what happens to a question whose conversation has a live run. Answers are read again for
    `cache` seconds, 0 for never: by the same principal, or by everybody where they are `shared`;
    another `version` has other answers. `refusal` tells why it cannot answer at all. Earlier turns
    reach it as messages of about `history_tokens` tokens, None for the usual.
    """

    name: str
    source: Source
    attempts: int = 1
    public: bool = False
    multitask: str = "refuse"
    cache: float = 0.0
    shared: bool = False
    version: str = ""
    refusal: Callable[[], str | None] | None = None
    history_tokens: int | None = None
