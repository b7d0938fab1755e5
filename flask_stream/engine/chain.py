"""A chain that was added to the service, with its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..sources.base import Source


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that can be called by name.

    - `attempts` is how many workers may run one run in total. If it is more than one, a run whose
      worker died is restarted.
    - `public` is whether callers may use the chain without signing in.
    - `multitask` is what happens to a question whose conversation has a live run.
    - `cache` is for how many seconds answers are cached, 0 for none: for the same principal, or for
      everybody if `shared`. Answers of another `version` are not used.
    - `refusal` returns a sentence if the chain cannot answer at all, or else None.
    - `history_tokens` limits, roughly, the earlier turns that the chain gets as messages. None is
      the default.
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
