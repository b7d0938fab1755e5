"""`sqlite:///…`: logs in a file. They survive a restart, and all workers of a machine share them.

Every method is made of single SQL statements, each a transaction by itself, and one statement
stores all batches or reads a whole page. That is simple, and it is what makes the store fast:
Python gives up its lock around each step of SQLite, and beside a busy event loop the store's
thread waits milliseconds to get it back. A loop over fifty batches took twenty times as long.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StoreError
from ..events import Event
from ..tasks import NativeThread
from . import sqlite_file as sql
from .base import Batch, Held, News, Run, Store

#: Seconds between two looks for what other processes have written.
POLL = 0.02
#: Batches stored by one statement, of six values each: SQLite takes 999 of them anywhere.
MANY = 128

_INSERT = {1 << power: sql.insert(1 << power) for power in range(MANY.bit_length())}


class SqliteStore(Store):
    """Keeps logs in a file on a local disk. For any number of processes on one machine.

    File and folder are made for this user alone where they are missing. Raises StoreError when
    they cannot be, or when the file is something else. Leases go by the system's clock.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        # With a connection of its own, closed again: none may be carried through a fork.
        sql.prepare(self._path)
        self._thread = NativeThread()
        self._connection: sqlite3.Connection | None = None  # made, used and closed on the thread
        self._closed = False
        self._changed = threading.Condition()
        self._news: dict[News, None] = {}
        self._watched: dict[str, int] = {}  # and the seq that was last told of
        self._held: set[str] = set()  # live runs of this process, not told to be cancelled
        self._asked = 0  # how often what to look for has changed
        self._looked = 0  # what that was at the last look
        self._version = -1  # SQLite's `data_version` at the last look
        self._due = 0.0  # when the next look is

    # Runs

    def create(self, run: Run, owner: str, lease: float) -> Run | None:
        values = (*_row(run), owner, lease)
        while not self._run(sql.CREATE, values).changed:
            there = self._get(sql.GET, run.id)
            if there and there[0].owner != owner:
                return there[0].run
            if there:
                break
            # Removed for its age in between.
        self._hold([run.id])
        return None

    def get(self, run: str) -> Run | None:
        there = self._get(sql.GET, run)
        return there[0].run if there else None

    def expired(self, run: str) -> bool:
        return bool(self._run(sql.EXPIRED, (run,)).rows)

    def _get(self, statement: str, *values: Any) -> list[_Owned]:
        rows = self._run(statement, values).rows
        return [_Owned(Run(*row[:-1]), row[-1]) for row in rows]

    # Events

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        stored: list[bool] = []
        for start in range(0, len(batches), MANY):
            some = batches[start : start + MANY]
            # A statement does not see its own rows: two batches of one run need two.
            apart = len({batch.run for batch in some}) == len(some)
            if apart and self._insert(some) == len(some):
                stored += [True] * len(some)
            else:
                # What was stored just now is found to be there already.
                stored += [self._insert([batch]) == 1 or self._there(batch) for batch in some]
        self._tell_own(batches, stored)
        return stored

    def _insert(self, batches: Sequence[Batch]) -> int:
        # A power of two rows, the last ones empty: a few statements, which SQLite knows by heart.
        size = 1 << (len(batches) - 1).bit_length()
        values: list[Any] = []
        for run, owner, after, events, status in batches:
            payload = "\n".join([f"{type}\t{data}" for _, type, data in events])
            values += (run, owner, after, events[-1].seq, status, payload)
        values += [None] * (6 * (size - len(batches)))
        return self._run(_INSERT[size], values).changed

    def _there(self, batch: Batch) -> bool:
        if [batch.owner] != [owner for _, owner in self._get(sql.GET, batch.run)]:
            return False
        return self.read(batch.run, batch.after, len(batch.events)) == list(batch.events)

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        values = {"run": run, "after": after, "limit": limit}
        rows = self._run(sql.READ, values).rows
        if not rows:
            return []
        last, payload = rows[0]
        lines = payload.split("\n")
        # The first batch may begin before the place that was asked for, the last end beyond it.
        begin = after - (last - len(lines))
        lines = lines[begin : begin + limit]
        return [Event(seq, *line.split("\t", 1)) for seq, line in enumerate(lines, after + 1)]

    # Owners

    def cancel(self, run: str) -> None:
        if self._run(sql.CANCEL, (run,)).changed:
            with self._changed:
                if run in self._held:
                    self._held.discard(run)
                    self._tell(News(run, cancel=True))

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, Held]:
        if not leases:
            return {}
        values = {"leases": json.dumps(dict(leases)), "lease": lease}
        self._run(sql.RENEW, values)
        held = json.loads(self._run(sql.RENEWED, values).rows[0][0])
        with self._changed:
            self._held -= leases.keys() - held.keys()
        answers = {0: Held.YES, 1: Held.CANCEL, None: Held.LOST}
        return {run: answers[held.get(run)] for run in leases}

    def adopt(self, owner: str, lease: float, limit: int) -> list[Run]:
        # Overdue before the call, however long that waits for a lock on the file: meanwhile no
        # owner could renew.
        now = time.time()
        if not self._run(sql.OVERDUE, (now,)).rows:  # mostly none, and this asks for no lock
            return []
        if not self._run(sql.ADOPT, (owner, now + lease, now, limit)).changed:
            return []
        adopted = [run for run, _ in self._get(sql.ADOPTED, owner, now + lease)]
        self.renew({run.id: owner for run in adopted}, lease)
        self._hold([run.id for run in adopted])
        return adopted

    def purge(self, age: float, limit: int) -> int:
        before = time.time() - age
        if not self._run(sql.OLD, (before,)).rows:
            return 0
        return self._run(sql.PURGE, (before, limit)).changed

    # News

    def watch(self, run: str) -> None:
        with self._changed:
            self._watched[run] = 0
            self._asked += 1
            self._tell(News(run, cancel=False))

    def unwatch(self, run: str) -> None:
        with self._changed:
            self._watched.pop(run, None)
            self._news.pop(News(run, cancel=False), None)

    def news(self, timeout: float) -> list[News]:
        until = time.monotonic() + timeout
        while True:
            with self._changed:
                if self._news:
                    news = list(self._news)
                    self._news.clear()
                    return news
                now = time.monotonic()
                idle = not self._watched and not self._held
                if (wait := until if idle else min(until, self._due)) > now:
                    self._changed.wait(wait - now)
                    continue
                ids, asked = [*self._watched, *self._held], self._asked
            if ids and self._due <= now:
                self._look(ids, asked)
            elif now >= until:
                return []

    def _look(self, ids: list[str], asked: int) -> None:
        self._due = time.monotonic() + POLL
        version = self._version if asked == self._looked else -1
        version, found = self._run(sql.LOOK, {"version": version, "runs": json.dumps(ids)}).rows[0]
        with self._changed:
            self._version, self._looked = version, asked
            for run, seq, cancel, live in json.loads(found or "[]"):
                self._grown(run, seq)
                if run in self._held and (cancel or not live):
                    self._held.discard(run)
                    if live:
                        self._tell(News(run, cancel=True))

    def _grown(self, run: str, seq: int) -> None:
        if self._watched.get(run, seq) < seq:
            self._watched[run] = seq
            self._tell(News(run, cancel=False))

    def _tell(self, news: News) -> None:
        self._news[news] = None
        self._changed.notify_all()

    def _tell_own(self, batches: Sequence[Batch], stored: list[bool]) -> None:
        # SQLite's `data_version` does not tell of what its own connection has written.
        with self._changed:
            for batch, done in zip(batches, stored, strict=True):
                if done:
                    self._grown(batch.run, batch.events[-1].seq)
                if batch.status is not None or not done:
                    self._held.discard(batch.run)

    def _hold(self, runs: Sequence[str]) -> None:
        with self._changed:
            self._held.update(runs)
            self._asked += 1
            self._changed.notify_all()

    # SQLite

    def _run(self, statement: str, values: Any = ()) -> _Result:
        if self._closed:
            raise StoreError(f"{self._path} is closed")
        try:
            return self._thread.call(self._execute, statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _execute(self, statement: str, values: Any) -> _Result:
        if self._connection is None:
            self._connection = sql.connect(self._path)
        cursor = self._connection.execute(statement, values)
        return _Result(cursor.fetchall(), cursor.rowcount)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._thread.call(self._disconnect)
            self._thread.close()


class _Result(NamedTuple):
    rows: list[Any]
    changed: int


class _Owned(NamedTuple):
    run: Run
    owner: str


def _row(run: Run) -> tuple[Any, ...]:
    return (
        *(run.id, run.chain, run.conversation, run.parent, run.principal, run.input),
        *(run.created, run.status, run.attempt),
    )
