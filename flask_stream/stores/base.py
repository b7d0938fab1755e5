"""The contract of a store: it keeps the logs of runs.

A store knows nothing about Flask, chains or readers. Any number of threads may call it. Run and
conversation ids satisfy `events.is_id`. Principals, titles, keys and values are any text that UTF-8
can encode: no lone surrogates. Every method may raise `StoreError` when the store cannot be
reached. A call that raised may be repeated: nothing is stored twice.
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
    `attempt` counts from 1 and grows when another worker takes the run over.

    `started` (the chain was called), `first_chunk` and `ended` are in whole milliseconds since
    `created`, like `Event.at`; None if that has not happened, or was not recorded. `answer` is the
    text of the run's messages as a JSON string. It is None while the run is live, and where the
    answer of an ended run has to be read from its log.
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
    started: int | None = None
    first_chunk: int | None = None
    ended: int | None = None
    answer: str | None = None

    @property
    def live(self) -> bool:
        return self.status == RUNNING


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as the store knows it: the runs of one principal that share its id.

    `created` and `updated` are when its first and its newest run were created, though they may be
    gone, in seconds since the epoch.
    """

    id: str
    principal: str
    title: str
    created: float
    updated: float


class CreateConditions(NamedTuple):
    """The conditions under which a run may be created.

    `max_live_runs` limits its principal's live runs, with this one; 0 is no limit. `only_live_run`
    forbids another live run in its conversation. `title` is for a new conversation.
    """

    max_live_runs: int = 0
    only_live_run: bool = False
    title: str = ""


NO_CONDITIONS = CreateConditions()


class CreateRefused(Exception):
    """A run was not created because of its conditions."""


class TooManyLiveRuns(CreateRefused):
    """The principal has as many live runs as it may have."""


class ConversationBusy(CreateRefused):
    """The conversation has a live run, `run`."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


class Batch(NamedTuple):
    """Events to store in one piece: they follow the event with seq `after`.

    `status` is the run's final status if the last event is its `end`, whose `at` becomes the run's
    `ended`. The fields after it are those of `Run`; None leaves what is stored unchanged.
    """

    run: str
    lease_token: str
    after: int
    events: Sequence[Event]
    status: str | None = None
    started: int | None = None
    first_chunk: int | None = None
    answer: str | None = None

    @property
    def ended(self) -> int | None:
        return None if self.status is None else self.events[-1].at


class LeaseState(Enum):
    """The result of renewing a lease."""

    YES = "yes"
    CANCEL = "cancel"  # renewed, and somebody asked for the run to be cancelled
    LOST = "lost"  # another worker holds the run, or it ended, or it does not exist


class News(NamedTuple):
    """A change to a run: its log has (or may have) grown, or it is to be cancelled."""

    run: str
    cancel: bool


class PurgedRun(NamedTuple):
    """A run that was removed because of its age."""

    chain: str
    principal: str
    conversation: str


class Store(ABC):
    """Keeps logs."""

    # Runs

    @abstractmethod
    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        """Create a run and return None; or return the run with that id if there is one.

        `lease_token` holds the run for `lease` seconds. The call is atomic: of any number of
        callers with the same id, one gets None. The token that created a run gets None again if it
        repeats the call. Raises ConversationBusy, or else TooManyLiveRuns, when the id is new and
        the conditions are not met; nothing is stored then. Conditions are checked atomically, too.
        """

    @abstractmethod
    def get(self, run: str) -> Run | None:
        """Return the run, or None if there is none."""

    @abstractmethod
    def branch(self, run: str, limit: int) -> list[Run]:
        """Return the run, its parent, that one's parent and so on: up to `limit`, in one call.

        The list ends before the first run that does not exist.
        """

    @abstractmethod
    def expired_principal(self, run: str) -> str | None:
        """Return the principal of a run that `purge` removed, if still known, else None."""

    @abstractmethod
    def append(self, batches: Sequence[Batch]) -> list[bool]:
        """Store every batch whole, in one round trip; True for each that is stored.

        False means that the lease token does not hold the run, that the run has ended, or that its
        log does not end at `after`. Repeating the last batch of a log, unchanged and with the same
        token, gives True and stores nothing.
        """

    @abstractmethod
    def read(self, run: str, after: int, limit: int) -> list[Event]:
        """Return the events with a seq above `after`, in order and without a gap.

        `limit` of them, all, or a few more than `limit`. Empty for an unknown run. `at` is 0 in
        logs that were stored before times were recorded.
        """

    @abstractmethod
    def cancel(self, run: str) -> None:
        """Ask the worker that holds the run to cancel it. No effect on a run that has ended."""

    @abstractmethod
    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        """Hold runs (id -> lease token) for `lease` more seconds; return what became of each."""

    @abstractmethod
    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        """Take over up to `limit` live runs whose lease has run out, and return them.

        `lease_token` then holds them, and `attempt` is one higher. Each goes to one caller only.
        """

    @abstractmethod
    def purge(self, age: float, limit: int) -> list[PurgedRun]:
        """Remove and return up to `limit` ended runs older than `age` seconds.

        A conversation is removed with its last run.
        """

    # Conversations

    @abstractmethod
    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        """Return up to `limit` of a principal's conversations, by falling (updated, id).

        `before` is the (updated, id) of the last one on the page before.
        """

    @abstractmethod
    def conversation(self, principal: str, id: str) -> Conversation | None:
        """Return a principal's conversation, or None. Principals share no conversations."""

    @abstractmethod
    def runs(self, principal: str, conversation: str) -> list[Run]:
        """Return a conversation's runs by `created`, then by id; empty without one."""

    @abstractmethod
    def newest(self, principal: str, conversation: str) -> Run | None:
        """Return the last of `runs`, or None, without reading the others."""

    @abstractmethod
    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        """Change a conversation's title; False if there is no such conversation."""

    @abstractmethod
    def delete_conversation(self, principal: str, conversation: str) -> bool:
        """Remove a conversation and all of its runs; False if there is no such conversation.

        Workers lose their leases and watchers get news. `expired_principal` knows none of these.
        """

    @abstractmethod
    def count(self, key: str, amount: int, ttl: float) -> int:
        """Add to a counter and return its value. A new one starts at 0 and lives `ttl` seconds.

        An amount of 0 only reads. A repeated call counts again.
        """

    @abstractmethod
    def claim(self, key: str, value: str, ttl: float) -> str:
        """Set a key for `ttl` seconds unless it is set; return its value. Atomic."""

    @abstractmethod
    def release_claim(self, key: str, value: str) -> None:
        """Unset a key if it has that value."""

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[None]:
        """Hold a lock, for at most `timeout` seconds. Raises TimeoutError if it is not free."""
        token, deadline = new_id(), time.monotonic() + timeout
        while self.claim(key, token, timeout) != token:
            if time.monotonic() > deadline:
                raise TimeoutError(key)
            time.sleep(0.02)
        try:
            yield
        finally:
            self.release_claim(key, token)

    # News

    @abstractmethod
    def watch(self, run: str) -> None:
        """Make `news` report this run. At least one report follows this call."""

    @abstractmethod
    def unwatch(self, run: str) -> None:
        """Stop reporting this run."""

    @abstractmethod
    def news(self, timeout: float) -> list[News]:
        """Wait up to `timeout` seconds for news of watched runs, and of runs to be cancelled.

        One thread per process calls this. It may report too much, but never too little.
        """

    def close(self) -> None:  # noqa: B027 - a store may have nothing to close
        """Release connections and files. Later calls may fail."""
