"""`memory://`: logs in this process, gone with it. The reference for what a store does."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ..events import Event
from .base import Batch, Held, News, Run, Store


@dataclass(slots=True)
class _Log:
    run: Run
    owner: str
    lease: float  # when it runs out, on the monotonic clock
    events: list[Event] = field(default_factory=list)
    cancel: bool = False


class MemoryStore(Store):
    """Keeps logs in a dictionary. Only for a service of one process."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._expired: dict[str, None] = {}
        self._watched: set[str] = set()
        self._news: dict[News, None] = {}
        self._changed = threading.Condition()

    def create(self, run: Run, owner: str, lease: float) -> Run | None:
        with self._changed:
            log = self._logs.setdefault(run.id, _Log(run, owner, time.monotonic() + lease))
            return None if log.owner == owner else log.run

    def get(self, run: str) -> Run | None:
        log = self._logs.get(run)
        return log.run if log else None

    def expired(self, run: str) -> bool:
        return run in self._expired

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        with self._changed:
            return [self._append(batch) for batch in batches]

    def _append(self, batch: Batch) -> bool:
        log = self._logs.get(batch.run)
        if log is None or log.owner != batch.owner:
            return False
        last = batch.events[-1].seq
        if log.run.seq != batch.after or not log.run.live:
            return log.run.seq == last and log.events[batch.after :] == list(batch.events)
        log.events.extend(batch.events)
        log.run = replace(log.run, seq=last, status=batch.status or log.run.status)
        if batch.run in self._watched:
            self._tell(News(batch.run, cancel=False))
        return True

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

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, Held]:
        with self._changed:
            return {run: self._renew(run, owner, lease) for run, owner in leases.items()}

    def _renew(self, run: str, owner: str, lease: float) -> Held:
        log = self._logs.get(run)
        if log is None or log.owner != owner or not log.run.live:
            return Held.LOST
        log.lease = time.monotonic() + lease
        return Held.CANCEL if log.cancel else Held.YES

    def adopt(self, owner: str, lease: float, limit: int) -> list[Run]:
        now = time.monotonic()
        with self._changed:
            lost = (log for log in self._logs.values() if log.run.live and log.lease < now)
            adopted = list(islice(lost, limit))
            for log in adopted:
                log.owner, log.lease = owner, now + lease
                log.run = replace(log.run, attempt=log.run.attempt + 1)
            return [log.run for log in adopted]

    def purge(self, age: float, limit: int) -> int:
        before = time.time() - age
        with self._changed:
            old = (r.run for r in self._logs.values() if r.run.created < before and not r.run.live)
            purged = [run.id for run in islice(old, limit)]
            for run in purged:
                del self._logs[run]
                self._expired[run] = None
            while len(self._expired) > _TOMBSTONES:
                del self._expired[next(iter(self._expired))]
            return len(purged)

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


#: How many ids of expired runs are remembered, so that they can be told from unknown ones.
_TOMBSTONES = 10_000
