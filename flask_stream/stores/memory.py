"""The store `memory://`, which keeps logs in this process. The reference for other stores."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ..events import Event
from .base import (
    NO_CONDITIONS,
    Batch,
    Conversation,
    ConversationBusy,
    CreateConditions,
    LeaseState,
    News,
    PurgedRun,
    Run,
    Store,
    TooManyLiveRuns,
)
from .memory_values import ExpiringValues


@dataclass(slots=True)
class _Log:
    run: Run
    lease_token: str
    lease: float  # when the lease expires, on the monotonic clock
    events: list[Event] = field(default_factory=list)
    cancel: bool = False


@dataclass(slots=True)
class _ConversationRuns:
    conversation: Conversation
    runs: dict[str, None] = field(default_factory=dict)
    live: dict[str, None] = field(default_factory=dict)


class MemoryStore(Store):
    """Keeps logs in a dictionary. For a service of one process only."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._conversations: dict[str, dict[str, _ConversationRuns]] = {}  # by principal and id
        self._live: Counter[str] = Counter()  # numbers of live runs, by principal
        self._expired: dict[str, str] = {}  # principals of removed runs, by run
        self._counters: ExpiringValues[int] = ExpiringValues()
        self._claims: ExpiringValues[str] = ExpiringValues()
        self._watched: set[str] = set()
        self._news: dict[News, None] = {}
        self._changed = threading.Condition()

    # Runs

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        with self._changed:
            log = self._logs.get(run.id)
            if log is not None:
                return None if log.lease_token == lease_token else log.run
            self._admit(run, conditions)
            self._logs[run.id] = _Log(run, lease_token, time.monotonic() + lease)
            return None

    def _admit(self, run: Run, conditions: CreateConditions) -> None:
        found = self._conversation(run.principal, run.conversation)
        if conditions.only_live_run and found and found.live:
            raise ConversationBusy(next(iter(found.live)))
        if 0 < conditions.max_live_runs <= self._live[run.principal]:
            raise TooManyLiveRuns
        if found is None:
            values = (run.conversation, run.principal, conditions.title, run.created, run.created)
            found = _ConversationRuns(Conversation(*values))
            self._conversations.setdefault(run.principal, {})[run.conversation] = found
        updated = max(run.created, found.conversation.updated)
        found.conversation = replace(found.conversation, updated=updated)
        found.runs[run.id] = found.live[run.id] = None
        self._live[run.principal] += 1

    def _conversation(self, principal: str, conversation: str) -> _ConversationRuns | None:
        return self._conversations.get(principal, {}).get(conversation)

    def get(self, run: str) -> Run | None:
        log = self._logs.get(run)
        return log.run if log else None

    def branch(self, run: str, limit: int) -> list[Run]:
        found: list[Run] = []
        with self._changed:
            log = self._logs.get(run)
            while log is not None and len(found) < limit:
                found.append(log.run)
                log = self._logs.get(log.run.parent or "")
        return found

    def expired_principal(self, run: str) -> str | None:
        return self._expired.get(run)

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        with self._changed:
            return [self._append(batch) for batch in batches]

    def _append(self, batch: Batch) -> bool:
        log = self._logs.get(batch.run)
        if log is None or log.lease_token != batch.lease_token:
            return False
        last = batch.events[-1].seq
        if log.run.seq != batch.after or not log.run.live:
            return log.run.seq == last and log.events[batch.after :] == list(batch.events)
        log.events.extend(batch.events)
        log.run = _advanced(log.run, last, batch)
        if batch.status is not None:
            self._end(log.run)
        if batch.run in self._watched:
            self._report(News(batch.run, cancel=False))
        return True

    def _end(self, run: Run) -> None:
        del self._conversations[run.principal][run.conversation].live[run.id]
        self._live[run.principal] -= 1
        if not self._live[run.principal]:
            del self._live[run.principal]

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        log = self._logs.get(run)
        # Seqs have no gap, so an event's index is its seq minus one.
        return log.events[after : after + limit] if log else []

    def cancel(self, run: str) -> None:
        with self._changed:
            log = self._logs.get(run)
            if log and log.run.live:
                log.cancel = True
                self._report(News(run, cancel=True))

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        with self._changed:
            return {
                run: self._renew(run, lease_token, lease) for run, lease_token in leases.items()
            }

    def _renew(self, run: str, lease_token: str, lease: float) -> LeaseState:
        log = self._logs.get(run)
        if log is None or log.lease_token != lease_token or not log.run.live:
            return LeaseState.LOST
        log.lease = time.monotonic() + lease
        return LeaseState.CANCEL if log.cancel else LeaseState.YES

    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        now = time.monotonic()
        with self._changed:
            overdue = (log for log in self._logs.values() if log.run.live and log.lease < now)
            taken = list(islice(overdue, limit))
            for log in taken:
                log.lease_token, log.lease = lease_token, now + lease
                log.run = replace(log.run, attempt=log.run.attempt + 1)
            return [log.run for log in taken]

    def purge(self, age: float, limit: int) -> list[PurgedRun]:
        before = time.time() - age
        with self._changed:
            old = (r.run for r in self._logs.values() if r.run.created < before and not r.run.live)
            purged = list(islice(old, limit))
            for run in purged:
                del self._logs[run.id]
                self._expired[run.id] = run.principal
                runs = self._conversations[run.principal][run.conversation].runs
                del runs[run.id]
                if not runs:
                    self._remove(run.principal, run.conversation)
            while len(self._expired) > _TOMBSTONES:
                del self._expired[next(iter(self._expired))]
            return [PurgedRun(run.chain, run.principal, run.conversation) for run in purged]

    def _remove(self, principal: str, conversation: str) -> None:
        del self._conversations[principal][conversation]
        if not self._conversations[principal]:
            del self._conversations[principal]

    # Conversations

    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        with self._changed:
            entries = self._conversations.get(principal, {}).values()
            found = [entry.conversation for entry in entries]
        if before is not None:
            found = [each for each in found if (each.updated, each.id) < before]
        return sorted(found, key=lambda each: (each.updated, each.id), reverse=True)[:limit]

    def conversation(self, principal: str, id: str) -> Conversation | None:
        found = self._conversation(principal, id)
        return found.conversation if found else None

    def runs(self, principal: str, conversation: str) -> list[Run]:
        return sorted(self._runs(principal, conversation), key=lambda run: (run.created, run.id))

    def newest(self, principal: str, conversation: str) -> Run | None:
        runs = self._runs(principal, conversation)
        return max(runs, key=lambda run: (run.created, run.id), default=None)

    def _runs(self, principal: str, conversation: str) -> list[Run]:
        with self._changed:
            found = self._conversation(principal, conversation)
            return [self._logs[run].run for run in found.runs] if found else []

    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        with self._changed:
            found = self._conversation(principal, conversation)
            if found is None:
                return False
            found.conversation = replace(found.conversation, title=title)
            return True

    def delete_conversation(self, principal: str, conversation: str) -> bool:
        with self._changed:
            found = self._conversation(principal, conversation)
            if found is None:
                return False
            for run in found.runs:
                log = self._logs.pop(run)
                if log.run.live:
                    self._end(log.run)
                if run in self._watched:
                    self._report(News(run, cancel=False))
            self._remove(principal, conversation)
            return True

    # Counters and claims

    def count(self, key: str, amount: int, ttl: float) -> int:
        with self._changed:
            total = (self._counters.get(key) or 0) + amount
            if amount:
                self._counters.set(key, total, ttl)
            return total

    def claim(self, key: str, value: str, ttl: float) -> str:
        with self._changed:
            current = self._claims.get(key)
            if current is None:
                self._claims.set(key, value, ttl)
                return value
            return current

    def release_claim(self, key: str, value: str) -> None:
        with self._changed:
            if self._claims.get(key) == value:
                self._claims.remove(key)

    # News

    def watch(self, run: str) -> None:
        with self._changed:
            self._watched.add(run)
            self._report(News(run, cancel=False))

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)

    def news(self, timeout: float) -> list[News]:
        with self._changed:
            if not self._news:
                self._changed.wait(timeout)
            news = list(self._news)
            self._news.clear()
            return news

    def _report(self, news: News) -> None:
        self._news[news] = None
        self._changed.notify_all()


def _advanced(run: Run, last: int, batch: Batch) -> Run:
    """Return the run as it is after the batch is stored."""
    if batch[4:] == (None, None, None, None):  # the fast path for most tokens
        return replace(run, seq=last)
    return replace(
        run,
        seq=last,
        status=batch.status or run.status,
        started=run.started if batch.started is None else batch.started,
        first_chunk=run.first_chunk if batch.first_chunk is None else batch.first_chunk,
        ended=batch.ended,
        answer=batch.answer,
    )


#: The number of removed runs that are remembered, to tell them from unknown ones.
_TOMBSTONES = 10_000
