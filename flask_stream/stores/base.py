"""The contract of a store, which keeps the logs of runs.

A store knows nothing about Flask, chains or readers. It is thread-safe. Run and conversation ids
satisfy `events.is_id`. Principals, titles, keys and values are any text that UTF-8 can encode.
Every method may raise `StoreError`; the call may then be repeated, and nothing is stored twice.
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
    `created`, like `Event.at`; None if that has not happened or was not recorded. `answer` is the
    text of the run's messages as a JSON string; None if the run is live or its log has to be read.
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

    `created` and `updated` are the times at which its first and its newest run were created, in
    seconds since the epoch. Those runs may have been removed since.
    """

    id: str
    principal: str
    title: str
    created: float
    updated: float


class CreateConditions(NamedTuple):
    """The conditions under which a run may be created.

    `max_live_runs` limits the live runs of the principal, including this one; 0 means no limit.
    `only_live_run` forbids another live run in the conversation. `title` is for a new conversation.
    """

    max_live_runs: int = 0
    only_live_run: bool = False
    title: str = ""


NO_CONDITIONS = CreateConditions()


class CreateRefused(Exception):
    """A run was not created because of its conditions."""


class TooManyLiveRuns(CreateRefused):
    """The principal has reached its limit of live runs."""


class ConversationBusy(CreateRefused):
    """The conversation already has a live run, `run`."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


class Batch(NamedTuple):
    """Events to store together, directly after the event with seq `after`.

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
    LOST = "lost"  # another worker holds the run, or it has ended, or it does not exist


class News(NamedTuple):
    """A change to a run: its log may have grown or, with `cancel`, it is to be cancelled."""

    run: str
    cancel: bool


class PurgedRun(NamedTuple):
    """A run that was removed because of its age."""

    chain: str
    principal: str
    conversation: str


class Store(ABC):
    """Keeps the logs of runs."""

    # Runs

    @abstractmethod
    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        """Create a run and return None, or return the existing run with that id.

        `lease_token` holds the run for `lease` seconds. The call is atomic: if several callers use
        the same id, one of them gets None. The token that created a run gets None again if it
        repeats the call. If a condition is not met, store nothing; raise ConversationBusy
        or else TooManyLiveRuns.
        """

    @abstractmethod
    def get(self, run: str) -> Run | None:
        """Return the run, or None if it does not exist."""

    @abstractmethod
    def branch(self, run: str, limit: int) -> list[Run]:
        """Return the run, its parent, its parent's parent and so on, in one round trip.

        The list ends after `limit` runs, or before the first run that does not exist.
        """

    @abstractmethod
    def expired_principal(self, run: str) -> str | None:
        """Return the principal of a run that `purge` removed, or None if it is not known."""

    @abstractmethod
    def append(self, batches: Sequence[Batch]) -> list[bool]:
        """Store each batch as a whole, all in one round trip; return whether each is stored.

        False means that the lease token does not hold the run, that the run has ended, or that its
        log does not end at `after`. Repeating the last batch of a log, unchanged and with the same
        token, returns True and stores nothing.
        """

    @abstractmethod
    def read(self, run: str, after: int, limit: int) -> list[Event]:
        """Return the events with a seq above `after`, in order and without a gap.

        If there are more than `limit`, return `limit` or a few more. The list is empty for an
        unknown run. `at` is 0 in logs that were stored before times were recorded.
        """

    @abstractmethod
    def cancel(self, run: str) -> None:
        """Ask the worker that holds the run to cancel it. Ignored if the run has ended."""

    @abstractmethod
    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        """Renew the leases of runs (id -> lease token) for `lease` seconds; return the results."""

    @abstractmethod
    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        """Take over up to `limit` live runs whose lease has run out, and return them.

        `lease_token` then holds them, and their `attempt` is one higher. Each run is returned to
        one caller only.
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
        """Return up to `limit` conversations of a principal, by (updated, id) in descending order.

        `before` is the (updated, id) of the last conversation on the previous page.
        """

    @abstractmethod
    def conversation(self, principal: str, id: str) -> Conversation | None:
        """Return a principal's conversation, or None. The same id of two principals is two."""

    @abstractmethod
    def runs(self, principal: str, conversation: str) -> list[Run]:
        """Return a conversation's runs in order of (created, id); empty if it does not exist."""

    @abstractmethod
    def newest(self, principal: str, conversation: str) -> Run | None:
        """Return the last run that `runs` would return, or None, without reading the others."""

    @abstractmethod
    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        """Change a conversation's title; return False if it does not exist."""

    @abstractmethod
    def delete_conversation(self, principal: str, conversation: str) -> bool:
        """Remove a conversation and all of its runs; return False if it does not exist.

        Leases of live runs are lost, and `news` reports watched runs. `expired_principal` does not
        remember these runs.
        """

    @abstractmethod
    def count(self, key: str, amount: int, ttl: float) -> int:
        """Add to a counter and return its value. A new one starts at 0 and lives `ttl` seconds.

        An amount of 0 only reads the value. Unlike other calls, a repeated call counts twice.
        """

    @abstractmethod
    def claim(self, key: str, value: str, ttl: float) -> str:
        """Set a key for `ttl` seconds unless it is set; return its value. The call is atomic."""

    @abstractmethod
    def release_claim(self, key: str, value: str) -> None:
        """Unset a key if it has that value."""

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[None]:
        """Hold a lock for up to `timeout` seconds. Raise TimeoutError if it stays taken."""
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
        """Make `news` report this run. It is reported at least once after this call."""

    @abstractmethod
    def unwatch(self, run: str) -> None:
        """Stop reporting this run."""

    @abstractmethod
    def news(self, timeout: float) -> list[News]:
        """Wait up to `timeout` seconds for news of watched runs, and of runs to be cancelled.

        Only one thread per process calls this. News may be reported more than once, or without
        cause, but no change is left out.
        """

    def close(self) -> None:  # noqa: B027 - a store may have nothing to close
        """Release connections and files. Later calls may fail."""
