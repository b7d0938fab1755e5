"""The request to start a run, as transports hand it to `Admission`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..sources.base import NO_ANSWER, resume_value

#: What can happen to a question whose conversation has a live run.
MULTITASK = ("refuse", "queue", "interrupt", "replace")
Multitask = Literal["refuse", "queue", "interrupt", "replace"]
#: The default parent: the conversation's newest run.
NEWEST = "newest"


def _admit_always() -> None:
    pass


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A request to start a run. Its ids are not checked yet.

    `live_run_limit` is how many live runs `principal` may have, including this one; 0 means no
    limit. `admit` is called just before a run is created and may raise an error that refuses it.
    `multitask` is None for the chain's default.
    """

    chain: str
    value: dict[str, Any]
    principal: str = ""
    run: str | None = None
    conversation: str | None = None
    parent: str | None = NEWEST
    multitask: str | None = None
    live_run_limit: int = 0
    admit: Callable[[], None] = _admit_always

    @property
    def resumes(self) -> bool:
        """Whether this is an answer to another run's interrupt, and not a question."""
        return resume_value(self.value) is not NO_ANSWER
