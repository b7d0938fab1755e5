"""`sqlite:///…`: logs in a file. They survive a restart, and all workers of a machine share them.

Every method is made of single SQL statements, each a transaction by itself, and one statement
stores all batches or reads a whole page. That is simple, and it is what makes the store fast:
Python gives up its lock around each step of SQLite, and beside a busy event loop the store's
thread waits milliseconds to get it back. A loop over fifty batches took twenty times as long.
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
from .sqlite_news import NewsFeed, Seen

#: Batches stored by one statement, of ten values each: SQLite takes 32,766 of them.
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
        file.prepare(self._path)
        self._thread = NativeThread()
        self._connection: sqlite3.Connection | None = None  # made, used and closed on the thread
        self._closed = False
        self._ear = NewsFeed(self._look)

    # Runs

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        values = _values(run) | conditions._asdict() | {"lease_token": lease_token, "lease": lease}
        while not self._run(sql.CREATE, values).changed:
            there = self._get(sql.GET, run.id)
            if there and there[0].lease_token != lease_token:
                return there[0].run
            if there:
                break
            busy, full = self._run(sql.DENIED, values).rows[0]
            if busy is not None:
                raise ConversationBusy(busy)
            if full:
                raise TooManyLiveRuns
            # What was in the way has ended or was removed in between.
        self._ear.hold([run.id])
        return None

    def get(self, run: str) -> Run | None:
        there = self._get(sql.GET, run)
        return there[0].run if there else None

    def branch(self, run: str, limit: int) -> list[Run]:
        rows = sorted(self._run(sql.BRANCH, {"run": run, "limit": limit}).rows)
        return [Run(*row[1:]) for row in rows]

    def expired_principal(self, run: str) -> str | None:
        rows = self._run(sql.EXPIRED, (run,)).rows
        return str(rows[0][0]) if rows else None

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
        self._ear.wrote(batches, stored)
        return stored

    def _insert(self, batches: Sequence[Batch]) -> int:
        # A power of two rows, the last ones empty: a few statements, which SQLite knows by heart.
        size = 1 << (len(batches) - 1).bit_length()
        values: list[Any] = []
        for batch in batches:
            run, token, after, events, status, started, first_chunk, answer = batch
            values += (run, token, after, status, started, first_chunk, answer)
            values += (events[-1].seq, batch.ended, encode_batch(events))
        values += [None] * (10 * (size - len(batches)))
        return self._run(_INSERT[size], values).changed

    def _there(self, batch: Batch) -> bool:
        if [batch.lease_token] != [lease_token for _, lease_token in self._get(sql.GET, batch.run)]:
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
        return decode_batch(lines[begin : begin + limit], after + 1)

    # Owners

    def cancel(self, run: str) -> None:
        if self._run(sql.CANCEL, (run,)).changed:
            self._ear.cancelled(run)

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        if not leases:
            return {}
        values = {"leases": json.dumps(dict(leases)), "lease": lease}
        self._run(sql.RENEW, values)
        held = json.loads(self._run(sql.RENEWED, values).rows[0][0])
        self._ear.release(leases.keys() - held.keys())
        answers = {0: LeaseState.YES, 1: LeaseState.CANCEL, None: LeaseState.LOST}
        return {run: answers[held.get(run)] for run in leases}

    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        # Overdue before the call, however long that waits for a lock on the file: meanwhile no
        # lease_token could renew.
        now = time.time()
        if not self._run(sql.OVERDUE, (now,)).rows:  # mostly none, and this asks for no lock
            return []
        if not self._run(sql.TAKE_OVER, (lease_token, now + lease, now, limit)).changed:
            return []
        taken = [run for run, _ in self._get(sql.TAKEN_OVER, lease_token, now + lease)]
        self.renew({run.id: lease_token for run in taken}, lease)
        self._ear.hold([run.id for run in taken])
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
        forgotten = self._run(sql.DELETE_CONVERSATION, (principal, conversation)).changed > 0
        if forgotten:
            self._ear.look_again()
        return forgotten

    # Small things that have a time to live

    def count(self, key: str, amount: int, ttl: float) -> int:
        if amount == 0:  # this asks for no lock
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
        self._ear.watch(run)

    def unwatch(self, run: str) -> None:
        self._ear.unwatch(run)

    def news(self, timeout: float) -> list[News]:
        return self._ear.wait(timeout)

    def _look(self, version: int, runs: list[str]) -> tuple[int, list[Seen] | None]:
        values = {"version": version, "runs": json.dumps(runs)}
        version, seen = self._run(sql.LOOK, values).rows[0]
        return version, None if seen is None else [Seen(*each) for each in json.loads(seen)]

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


class _Owned(NamedTuple):
    run: Run
    lease_token: str


def _values(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in _STORED}


#: Fields of a `Run` that are stored with it; its `seq` is that of its log.
_STORED = [field.name for field in dataclasses.fields(Run) if field.name != "seq"]
