"""What a store is: it keeps the logs of runs.

A store knows nothing of Flask, chains or readers. It may be called from many threads at once.
Ids of runs and conversations are such as `events.is_id` takes; principals, titles, keys and values
are any text that UTF-8 can say, so without lone surrogates.
Every method may raise `StoreError` when the store cannot be reached; a call that raised may be
repeated, and repeating it changes nothing that the first try may already have done.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..events import Event, new_id

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


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as the store knows it: the runs of one principal that share its id.

    `title` is that of its first run until it is renamed. `created` is when its first run was
    created, though that may be gone, and `updated` the latest that any was, in seconds since the
    epoch.
    """

    id: str
    principal: str
    title: str
    created: float
    updated: float


class CreateConditions(NamedTuple):
    """On what terms a run may be created.

    `most` is how many live runs its principal may have with it, 0 for any number. `alone` is
    whether it must be the only live run of its conversation. `title` names its conversation,
    should this be its first run.
    """

    most: int = 0
    alone: bool = False
    title: str = ""


class CreateRefused(Exception):
    """A run was not created, because of its terms."""


class TooManyLiveRuns(CreateRefused):
    """Its principal has as many live runs as it may have."""


class ConversationBusy(CreateRefused):
    """Its conversation has a live run, `run`."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


class Batch(NamedTuple):
    """Events to store in one piece: they follow the event with seq `after`.

    `status` is None, or the run's final status when the last event is its `end`.
    """

    run: str
    owner: str
    after: int
    events: Sequence[Event]
    status: str | None


#: No terms at all.
NO_CONDITIONS = CreateConditions()


class LeaseState(Enum):
    """What became of a lease that was to be renewed."""

    YES = "yes"
    CANCEL = "cancel"  # still held, and somebody asked for the run to be cancelled
    LOST = "lost"  # another owner has the run, or it ended, or it is gone


class News(NamedTuple):
    """Something happened to a run: its log grew (or may have), or it is to be cancelled."""

    run: str
    cancel: bool


class PurgedRun(NamedTuple):
    """A run that was removed for its age: whose it was."""

    chain: str
    principal: str
    conversation: str


class Store(ABC):
    """Keeps logs."""

    # Runs

    @abstractmethod
    def create(
        self, run: Run, owner: str, lease: float, terms: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        """Create the run, held by `owner` for `lease` seconds; None if that is what happened.

        Atomic by id: of any number of callers one gets None, all others the run that is there.
        The `owner` that created a run gets None again if it repeats the call. Where there is
        no run of that id, and the terms forbid one, raises Busy or, if it is not that, Full;
        nothing is stored then. Terms are atomic, too: of any number of callers at the same
        moment, as many succeed as the terms allow.
        """

    @abstractmethod
    def get(self, run: str) -> Run | None:
        """The run, or None if there is none."""

    @abstractmethod
    def expired(self, run: str) -> str | None:
        """Whose run of that id was here and was removed for its age (best effort), or None."""

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
    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        """Hold the runs (`run -> owner`) for `lease` more seconds; what became of each."""

    @abstractmethod
    def adopt(self, owner: str, lease: float, limit: int) -> list[Run]:
        """Take over up to `limit` live runs whose lease ran out, each by one caller only.

        They are then held by `owner` for `lease` seconds, with `attempt` one higher.
        """

    @abstractmethod
    def purge(self, age: float, limit: int) -> list[PurgedRun]:
        """Remove up to `limit` whole runs created over `age` seconds ago that are not live.

        What each of them was. A conversation without any run is removed with its last one.
        """

    # Conversations

    @abstractmethod
    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        """Up to `limit` of a principal's conversations, the last updated first.

        Those that are updated at the same moment come by falling id. `before` is the
        (updated, id) of the last one of the page before.
        """

    @abstractmethod
    def conversation(self, principal: str, id: str) -> Conversation | None:
        """A principal's conversation, or None. One of another principal is another one."""

    @abstractmethod
    def runs(self, principal: str, conversation: str) -> list[Run]:
        """A conversation's runs by when they were created, then by id; empty without one."""

    @abstractmethod
    def rename(self, principal: str, conversation: str, title: str) -> bool:
        """Give a conversation another title; False where there is none."""

    @abstractmethod
    def forget(self, principal: str, conversation: str) -> bool:
        """Remove a conversation and all of its runs; False where there is none.

        A run that is live is gone, too: its owner finds that it no longer holds it, and whoever
        watches it gets news of it. No trace is kept: `expired` does not know these runs.
        """

    # Small things that have a time to live

    @abstractmethod
    def count(self, key: str, amount: int, ttl: float) -> int:
        """Add to a counter and return what it then is. A new one begins at 0, for `ttl` seconds.

        With an amount of 0 nothing is made, only read. Not made safe against being repeated.
        """

    @abstractmethod
    def claim(self, key: str, value: str, ttl: float) -> str:
        """Set a key that is not set, for `ttl` seconds; what it is then set to. Atomic."""

    @abstractmethod
    def disclaim(self, key: str, value: str) -> None:
        """Unset a key, if it is set to that value."""

    @contextmanager
    def alone(self, key: str, patience: float) -> Iterator[None]:
        """Be the only one who is in here by that key. Raises TimeoutError after `patience`."""
        mine, until = new_id(), time.monotonic() + patience
        while self.claim(key, mine, patience) != mine:
            if time.monotonic() > until:
                raise TimeoutError(key)
            time.sleep(0.02)
        try:
            yield
        finally:
            self.disclaim(key, mine)

    # News

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
