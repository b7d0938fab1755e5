"""What a store is: it keeps the logs of runs.

A store knows nothing of Flask, chains or readers. It may be called from many threads at once.
Every method may raise `StoreError` when the store cannot be reached; a call that raised may be
repeated, and repeating it changes nothing that the first try may already have done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..events import Event

RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the store knows it.

    `input` is JSON text. `created` is in seconds since the epoch. `status` is `running` or the
    status of the `end` event. `seq` is that of the last stored event, 0 before the first.
    `attempt` counts from 1 and grows when another owner starts the run anew.
    """

    id: str
    chain: str
    conversation: str
    parent: str | None
    principal: str
    input: str
    created: float
    status: str = RUNNING
    seq: int = 0
    attempt: int = 1

    @property
    def live(self) -> bool:
        return self.status == RUNNING


class Batch(NamedTuple):
    """Events to store in one piece: they follow the event with seq `after`.

    `status` is None, or the run's final status when the last event is its `end`.
    """

    run: str
    owner: str
    after: int
    events: Sequence[Event]
    status: str | None


class Held(Enum):
    """What became of a lease that was to be renewed."""

    YES = "yes"
    CANCEL = "cancel"  # still held, and somebody asked for the run to be cancelled
    LOST = "lost"  # another owner has the run, or it ended, or it is gone


class News(NamedTuple):
    """Something happened to a run: its log grew (or may have), or it is to be cancelled."""

    run: str
    cancel: bool


class Store(ABC):
    """Keeps logs."""

    @abstractmethod
    def create(self, run: Run, owner: str, lease: float) -> Run | None:
        """Create the run, held by `owner` for `lease` seconds; None if that is what happened.

        Atomic by id: of any number of callers one gets None, all others the run that is there.
        The `owner` that created a run gets None again if it repeats the call.
        """

    @abstractmethod
    def get(self, run: str) -> Run | None:
        """The run, or None if there is none."""

    @abstractmethod
    def expired(self, run: str) -> bool:
        """Whether a run of that id was here and was removed for its age (best effort)."""

    @abstractmethod
    def append(self, batches: Sequence[Batch]) -> list[bool]:
        """Store every batch whole, in one round trip; True for each that is stored.

        False: the owner does not hold the run (any more), the run has ended, or its log does
        not end at `after`. The log's last batch once more, the same to the letter and from the
        same owner, is True: a repeated call stores nothing twice.
        """

    @abstractmethod
    def read(self, run: str, after: int, limit: int) -> list[Event]:
        """Events with a seq above `after`, in order without a gap: `limit` of them, or all.

        There may be some more, where they are stored together. Empty for an unknown run.
        """

    @abstractmethod
    def cancel(self, run: str) -> None:
        """Ask whoever owns the run to cancel it. No effect on a run that ended."""

    @abstractmethod
    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, Held]:
        """Hold the runs (`run -> owner`) for `lease` more seconds; what became of each."""

    @abstractmethod
    def adopt(self, owner: str, lease: float, limit: int) -> list[Run]:
        """Take over up to `limit` live runs whose lease ran out, each by one caller only.

        They are then held by `owner` for `lease` seconds, with `attempt` one higher.
        """

    @abstractmethod
    def purge(self, age: float, limit: int) -> int:
        """Remove up to `limit` whole runs created over `age` seconds ago that are not live."""

    @abstractmethod
    def watch(self, run: str) -> None:
        """Let `news` tell of this run. After this call, at least one piece of news comes."""

    @abstractmethod
    def unwatch(self, run: str) -> None:
        """Let `news` forget this run."""

    @abstractmethod
    def news(self, timeout: float) -> list[News]:
        """Wait up to `timeout` seconds for news of watched runs, and of runs to be cancelled.

        Called by one thread per process. It may report too much, never too little.
        """

    def close(self) -> None:  # noqa: B027 - a store may well have nothing to close
        """Give back connections and files. Any call after it may fail."""
