"""The store `sqlite:///…`: logs in a file, which survive a restart.

All workers of a machine share the file. Every method consists of single SQL statements, each a
transaction of its own. One statement stores all batches or reads a whole page, which is what makes
the store fast: Python releases the GIL around each step of SQLite, and beside a busy event loop
the store's thread waits milliseconds to get it back. A loop over 50 batches took 20 times as long.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..concurrency.native_thread import NativeThread
from ..errors import StoreError
from ..events import Event
from . import sqlite_file as file
from . import sqlite_statements as sql
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
from .batch_format import decode_batch, encode_batch
from .sqlite_news import NewsFeed, PolledRun

#: The largest number of batches in one statement. SQLite allows 32,766 values, and each has ten.
BATCHES = 128

_INSERT = {1 << power: sql.insert(1 << power) for power in range(BATCHES.bit_length())}


class SqliteStore(Store):
    """Keeps logs in a file on a local disk. For any number of processes on one machine.

    A missing file or folder is created with permissions for this user only. Raise StoreError if it
    cannot be created, or if the file belongs to another program. Leases use the system's clock.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        # Uses and closes a connection of its own, because connections must not survive a fork.
        file.prepare(self._path)
        self._thread = NativeThread()
        self._connection: sqlite3.Connection | None = None  # only the thread uses it
        self._closed = False
        self._news_feed = NewsFeed(self._poll)

    # Runs

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        values = _values(run) | conditions._asdict() | {"lease_token": lease_token, "lease": lease}
        while not self._run(sql.CREATE, values).changed:
            found = self._get(sql.GET, run.id)
            if found and found[0].lease_token != lease_token:
                return found[0].run
            if found:
                break
            busy, full = self._run(sql.REFUSAL, values).rows[0]
            if busy is not None:
                raise ConversationBusy(busy)
            if full:
                raise TooManyLiveRuns
            # The reason has gone since: a run has ended or was removed.
        self._news_feed.hold([run.id])
        return None

    def get(self, run: str) -> Run | None:
        found = self._get(sql.GET, run)
        return found[0].run if found else None

    def branch(self, run: str, limit: int) -> list[Run]:
        rows = sorted(self._run(sql.BRANCH, {"run": run, "limit": limit}).rows)
        return [Run(*row[1:]) for row in rows]

    def expired_principal(self, run: str) -> str | None:
        rows = self._run(sql.EXPIRED, (run,)).rows
        return str(rows[0][0]) if rows else None

    def _get(self, statement: str, *values: Any) -> list[_StoredRun]:
        rows = self._run(statement, values).rows
        return [_StoredRun(Run(*row[:-1]), row[-1]) for row in rows]

    # Events

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        stored: list[bool] = []
        for start in range(0, len(batches), BATCHES):
            chunk = batches[start : start + BATCHES]
            # A statement does not see its own rows, so two batches of one run need two statements.
            distinct = len({batch.run for batch in chunk}) == len(chunk)
            if distinct and self._insert(chunk) == len(chunk):
                stored += [True] * len(chunk)
            else:
                # `_is_stored` is true for the batches that the statement above has stored.
                stored += [self._insert([batch]) == 1 or self._is_stored(batch) for batch in chunk]
        self._news_feed.appended(batches, stored)
        return stored

    def _insert(self, batches: Sequence[Batch]) -> int:
        # The rows are padded to a power of two, so that there are few statements to be cached.
        size = 1 << (len(batches) - 1).bit_length()
        values: list[Any] = []
        for batch in batches:
            run, token, after, events, status, started, first_chunk, answer = batch
            values += (run, token, after, status, started, first_chunk, answer)
            values += (events[-1].seq, batch.ended, encode_batch(events))
        values += [None] * (10 * (size - len(batches)))
        return self._run(_INSERT[size], values).changed

    def _is_stored(self, batch: Batch) -> bool:
        found = self._get(sql.GET, batch.run)
        if not found or found[0].lease_token != batch.lease_token:
            return False
        return self.read(batch.run, batch.after, len(batch.events)) == list(batch.events)

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        values = {"run": run, "after": after, "limit": limit}
        rows = self._run(sql.READ, values).rows
        if not rows:
            return []
        last, payload = rows[0]
        lines = payload.split("\n")
        # The first batch may begin before `after`, and the last may end after `after + limit`.
        begin = after - (last - len(lines))
        return decode_batch(lines[begin : begin + limit], after + 1)

    # Leases

    def cancel(self, run: str) -> None:
        if self._run(sql.CANCEL, (run,)).changed:
            self._news_feed.cancelled(run)

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        if not leases:
            return {}
        values = {"leases": json.dumps(dict(leases)), "lease": lease}
        self._run(sql.RENEW, values)
        held = json.loads(self._run(sql.RENEWED, values).rows[0][0])
        self._news_feed.release(leases.keys() - held.keys())
        answers = {0: LeaseState.YES, 1: LeaseState.CANCEL, None: LeaseState.LOST}
        return {run: answers[held.get(run)] for run in leases}

    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        # The time before the call, which may wait for a lock on the file: while it waits, other
        # workers cannot renew their leases either.
        now = time.time()
        if not self._run(sql.OVERDUE, (now,)).rows:  # needs no lock, and usually there are none
            return []
        if not self._run(sql.TAKE_OVER, (lease_token, now + lease, now, limit)).changed:
            return []
        taken = [run for run, _ in self._get(sql.TAKEN_OVER, lease_token, now + lease)]
        self.renew({run.id: lease_token for run in taken}, lease)
        self._news_feed.hold([run.id for run in taken])
        return taken

    def purge(self, age: float, limit: int) -> list[PurgedRun]:
        before = time.time() - age
        if not self._run(sql.OLD, (before,)).rows:
            return []
        return [PurgedRun(*row) for row in self._run(sql.PURGE, (before, limit)).rows]

    # Conversations

    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        values = (principal, *(before or (math.inf, "")), limit)
        return [Conversation(*row) for row in self._run(sql.CONVERSATIONS, values).rows]

    def conversation(self, principal: str, id: str) -> Conversation | None:
        rows = self._run(sql.CONVERSATION, (principal, id)).rows
        return Conversation(*rows[0]) if rows else None

    def runs(self, principal: str, conversation: str) -> list[Run]:
        return [run for run, _ in self._get(sql.RUNS, principal, conversation)]

    def newest(self, principal: str, conversation: str) -> Run | None:
        found = self._get(sql.NEWEST, principal, conversation)
        return found[0].run if found else None

    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        return self._run(sql.RENAME_CONVERSATION, (title, principal, conversation)).changed > 0

    def delete_conversation(self, principal: str, conversation: str) -> bool:
        deleted = self._run(sql.DELETE_CONVERSATION, (principal, conversation)).changed > 0
        if deleted:
            self._news_feed.refresh()
        return deleted

    # Counters and claims

    def count(self, key: str, amount: int, ttl: float) -> int:
        if amount == 0:  # this needs no lock
            rows = self._run(sql.COUNTED, (f"count:{key}",)).rows
        else:
            values = {"key": f"count:{key}", "amount": amount, "ttl": ttl}
            rows = self._run(sql.COUNT, values).rows
        return int(rows[0][0]) if rows else 0

    def claim(self, key: str, value: str, ttl: float) -> str:
        values = {"key": f"claim:{key}", "value": value, "ttl": ttl}
        return str(self._run(sql.CLAIM, values).rows[0][0])

    def release_claim(self, key: str, value: str) -> None:
        self._run(sql.RELEASE_CLAIM, (f"claim:{key}", value))

    # News

    def watch(self, run: str) -> None:
        self._news_feed.watch(run)

    def unwatch(self, run: str) -> None:
        self._news_feed.unwatch(run)

    def news(self, timeout: float) -> list[News]:
        return self._news_feed.wait(timeout)

    def _poll(self, version: int, runs: list[str]) -> tuple[int, list[PolledRun] | None]:
        values = {"version": version, "runs": json.dumps(runs)}
        version, found = self._run(sql.POLL, values).rows[0]
        return version, None if found is None else [PolledRun(*each) for each in json.loads(found)]

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
            self._connection = file.connect(self._path)
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


class _StoredRun(NamedTuple):
    run: Run
    lease_token: str


def _values(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in _STORED}


#: The fields of a `Run` that are stored in its row. Its `seq` is that of its log.
_STORED = [field.name for field in dataclasses.fields(Run) if field.name != "seq"]
