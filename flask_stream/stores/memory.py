"""`memory://`: logs in this process, gone with it. The reference for what a store does."""

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
    lease: float  # when it runs out, on the monotonic clock
    events: list[Event] = field(default_factory=list)
    cancel: bool = False


@dataclass(slots=True)
class _Talk:
    conversation: Conversation
    runs: dict[str, None] = field(default_factory=dict)
    live: dict[str, None] = field(default_factory=dict)


class MemoryStore(Store):
    """Keeps logs in a dictionary. Only for a service of one process."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._talks: dict[str, dict[str, _Talk]] = {}  # by principal and id
        self._live: Counter[str] = Counter()  # runs, by principal
        self._expired: dict[str, str] = {}  # principals, by run
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
        talk = self._talk(run.principal, run.conversation)
        if conditions.only_live_run and talk and talk.live:
            raise ConversationBusy(next(iter(talk.live)))
        if 0 < conditions.max_live_runs <= self._live[run.principal]:
            raise TooManyLiveRuns
        if talk is None:
            known = (run.conversation, run.principal, conditions.title, run.created, run.created)
            talk = _Talk(Conversation(*known))
            self._talks.setdefault(run.principal, {})[run.conversation] = talk
        updated = max(run.created, talk.conversation.updated)
        talk.conversation = replace(talk.conversation, updated=updated)
        talk.runs[run.id] = talk.live[run.id] = None
        self._live[run.principal] += 1

    def _talk(self, principal: str, conversation: str) -> _Talk | None:
        return self._talks.get(principal, {}).get(conversation)

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
        log.run = _after(log.run, last, batch)
        if batch.status is not None:
            self._end(log.run)
        if batch.run in self._watched:
            self._tell(News(batch.run, cancel=False))
        return True

    def _end(self, run: Run) -> None:
        del self._talks[run.principal][run.conversation].live[run.id]
        self._live[run.principal] -= 1
        if not self._live[run.principal]:
            del self._live[run.principal]

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        log = self._logs.get(run)
        # An event's place is its seq less one, because seqs have no gap.
        return log.events[after : after + limit] if log else []

    def cancel(self, run: str) -> None:
        with self._changed:
            log = self._logs.get(run)
            if log and log.run.live:
                log.cancel = True
                self._tell(News(run, cancel=True))

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
            lost = (log for log in self._logs.values() if log.run.live and log.lease < now)
            taken = list(islice(lost, limit))
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
                runs = self._talks[run.principal][run.conversation].runs
                del runs[run.id]
                if not runs:
                    self._drop(run.principal, run.conversation)
            while len(self._expired) > _TOMBSTONES:
                del self._expired[next(iter(self._expired))]
            return [PurgedRun(run.chain, run.principal, run.conversation) for run in purged]

    def _drop(self, principal: str, conversation: str) -> None:
        del self._talks[principal][conversation]
        if not self._talks[principal]:
            del self._talks[principal]

    # Conversations

    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        with self._changed:
            found = [talk.conversation for talk in self._talks.get(principal, {}).values()]
        if before is not None:
            found = [each for each in found if (each.updated, each.id) < before]
        return sorted(found, key=lambda each: (each.updated, each.id), reverse=True)[:limit]

    def conversation(self, principal: str, id: str) -> Conversation | None:
        talk = self._talk(principal, id)
        return talk.conversation if talk else None

    def runs(self, principal: str, conversation: str) -> list[Run]:
        with self._changed:
            talk = self._talk(principal, conversation)
            runs = [self._logs[run].run for run in talk.runs] if talk else []
        return sorted(runs, key=lambda run: (run.created, run.id))

    def newest(self, principal: str, conversation: str) -> Run | None:
        with self._changed:
            talk = self._talk(principal, conversation)
            runs = [self._logs[run].run for run in talk.runs] if talk else []
        return max(runs, key=lambda run: (run.created, run.id), default=None)

    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        with self._changed:
            talk = self._talk(principal, conversation)
            if talk is None:
                return False
            talk.conversation = replace(talk.conversation, title=title)
            return True

    def delete_conversation(self, principal: str, conversation: str) -> bool:
        with self._changed:
            talk = self._talk(principal, conversation)
            if talk is None:
                return False
            for run in talk.runs:
                log = self._logs.pop(run)
                if log.run.live:
                    self._end(log.run)
                if run in self._watched:
                    self._tell(News(run, cancel=False))
            self._drop(principal, conversation)
            return True

    # Small things that have a time to live

    def count(self, key: str, amount: int, ttl: float) -> int:
        with self._changed:
            there = self._counters.get(key)
            if amount:
                self._counters.set(key, (there or 0) + amount, ttl)
            return (there or 0) + amount

    def claim(self, key: str, value: str, ttl: float) -> str:
        with self._changed:
            there = self._claims.get(key)
            if there is None:
                self._claims.set(key, value, ttl)
            return value if there is None else there

    def release_claim(self, key: str, value: str) -> None:
        with self._changed:
            if self._claims.get(key) == value:
                self._claims.remove(key)

    # News

    def watch(self, run: str) -> None:
        with self._changed:
            self._watched.add(run)
            self._tell(News(run, cancel=False))

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)

    def news(self, timeout: float) -> list[News]:
        with self._changed:
            if not self._news:
                self._changed.wait(timeout)
            news = list(self._news)
            self._news.clear()
            return news

    def _tell(self, news: News) -> None:
        self._news[news] = None
        self._changed.notify_all()


def _after(run: Run, last: int, batch: Batch) -> Run:
    """Return the run as it is once the batch is stored."""
    if batch[4:] == (None, None, None, None):  # as it is once per token
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


#: How many ids of expired runs are remembered, so that they can be told from unknown ones.
_TOMBSTONES = 10_000
