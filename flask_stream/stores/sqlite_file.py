"""The file of `sqlite:///…`: how it is made and opened, and every statement that it is asked.

Each statement is a transaction by itself, and those that are asked often answer in one row: see
`sqlite`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from ..errors import StoreError

#: Seconds that a call waits for a lock that another process holds.
BUSY = 10.0
#: What the file's header says: whose database it is, and in which format.
APPLICATION = 0x464C5354
FORMAT = 1


def connect(path: Path) -> sqlite3.Connection:
    """A connection, to be used by the thread that asks for it."""
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    # A commit is handed to the operating system and does not wait for the disk: a process that
    # dies takes nothing back. When the machine itself dies the last commits may be gone; none is
    # torn, and the file is sound.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def prepare(path: Path) -> None:
    """Have a file with our tables; what is missing is made for this user alone.

    Raises StoreError when that cannot be, or when the file is something else.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only a new file is opened here, for its mode, which SQLite gives to its companions,
        # too. To close one that this process has in use would drop SQLite's locks on it.
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        if not path.is_file():  # else another worker was quicker
            raise StoreError(f"{path} cannot be made: {error.filename} is no folder") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error
    for place in (path, path.parent):  # the companions are made in the folder, at any time
        if not os.access(place, os.R_OK | os.W_OK):
            raise StoreError(f"{place} cannot be written to")
    try:
        with closing(connect(path)) as connection:
            _check(connection, path)
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is no database of SQLite: {error}") from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
    application, version, tables = connection.execute(_HEADER).fetchone()
    if (application, version, tables) == (0, 0, 0):
        _make(connection)
    elif application != APPLICATION:
        raise StoreError(f"{path} is the database of another program: name another file")
    elif version != FORMAT:
        raise StoreError(
            f"{path} has format {version}, and this version of flask_stream reads {FORMAT}: "
            "install the version that wrote it, or name another file"
        )


def _make(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # Workers that start together: here alone SQLite does not wait for a lock.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
    connection.executescript(_TABLES)


# In one statement, so that a file that is just being made is seen before or after.
_HEADER = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""

# Triggers, so that an end and a removal are one statement each, like everything else. `expired`
# remembers the ids of the last hundred thousand runs that were removed. `input` comes last: what
# is before it can change without its pages being written anew.
_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    chain TEXT NOT NULL,
    conversation TEXT NOT NULL,
    parent TEXT,
    principal TEXT NOT NULL,
    created REAL NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    owner TEXT NOT NULL,
    lease REAL NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0,
    input TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS live ON runs (lease) WHERE status = 'running';
CREATE INDEX IF NOT EXISTS over ON runs (created) WHERE status <> 'running';
CREATE TABLE IF NOT EXISTS batches (
    run INTEGER NOT NULL,
    last INTEGER NOT NULL,
    status TEXT,
    payload TEXT NOT NULL,
    PRIMARY KEY (run, last)
);
CREATE VIEW IF NOT EXISTS logs AS
    SELECT *, coalesce((SELECT max(last) FROM batches WHERE run = number), 0) AS seq FROM runs;
CREATE TABLE IF NOT EXISTS expired (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE
);
CREATE TRIGGER IF NOT EXISTS ended AFTER INSERT ON batches WHEN new.status IS NOT NULL BEGIN
    UPDATE runs SET status = new.status WHERE number = new.run;
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON runs BEGIN
    DELETE FROM batches WHERE run = old.number;
    INSERT OR REPLACE INTO expired (id) VALUES (old.id);
    DELETE FROM expired WHERE number <= (SELECT max(number) FROM expired) - 100000;
END;
PRAGMA application_id = 0x464C5354;
PRAGMA user_version = 1;
COMMIT;
"""

# A lease is counted from when the file was free, by SQLite's clock, which is `time.time`.
CREATE = """
INSERT INTO runs (id, chain, conversation, parent, principal, input, created, status, attempt,
                  owner, lease)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (julianday('now') - 2440587.5) * 86400.0 + ?)
ON CONFLICT (id) DO NOTHING
"""

# The fields of a `Run`, and its owner.
GET = """
SELECT id, chain, conversation, parent, principal, input, created, status, seq, attempt, owner
FROM logs WHERE id = ?
"""


def insert(rows: int) -> str:
    """Store so many batches, each if its owner holds the run and the log ends where it begins.

    Six values each: run, owner, after, last, status, payload.
    """
    return _INSERT.replace("(?)", ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows))


# CROSS JOIN here and below: first the few that are given, then each by its id.
_INSERT = """
INSERT INTO batches (run, last, status, payload)
WITH given (run, owner, after, last, status, payload) AS (VALUES (?))
SELECT logs.number, given.last, given.status, given.payload
FROM given CROSS JOIN logs ON logs.id = given.run
WHERE logs.owner = given.owner AND logs.status = 'running' AND logs.seq = given.after
"""

# Whole batches, up to the first that reaches the limit: the seq of the last event, and all
# payloads in one. A window, because only there is the order of a concatenation promised.
READ = """
SELECT max(last) OVER whole, group_concat(payload, char(10)) OVER whole
FROM batches WHERE run = (SELECT number FROM runs WHERE id = :run)
AND last > :after AND last <= coalesce((
    SELECT min(last) FROM batches
    WHERE run = (SELECT number FROM runs WHERE id = :run) AND last >= :after + :limit
), 9e18)
WINDOW whole AS (ORDER BY last ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
LIMIT 1
"""

CANCEL = "UPDATE runs SET cancel = 1 WHERE id = ? AND status = 'running'"

RENEW = """
UPDATE runs SET lease = (julianday('now') - 2440587.5) * 86400.0 + :lease WHERE number IN (
    SELECT runs.number FROM json_each(:leases) AS held CROSS JOIN runs ON runs.id = held.key
    WHERE runs.owner = held.value AND runs.status = 'running'
)
"""
RENEWED = """
SELECT json_group_object(runs.id, runs.cancel)
FROM json_each(:leases) AS held CROSS JOIN runs ON runs.id = held.key
WHERE runs.owner = held.value AND runs.status = 'running'
"""

OVERDUE = "SELECT 1 FROM runs WHERE status = 'running' AND lease < ? LIMIT 1"
ADOPT = """
UPDATE runs SET owner = ?, lease = ?, attempt = attempt + 1 WHERE number IN (
    SELECT number FROM runs WHERE status = 'running' AND lease < ? ORDER BY lease LIMIT ?
)
"""
# Those of one call of `ADOPT`: no other has both the same owner and the same lease.
ADOPTED = """
SELECT id, chain, conversation, parent, principal, input, created, status, seq, attempt, owner
FROM logs WHERE status = 'running' AND owner = ? AND lease = ?
"""

OLD = "SELECT 1 FROM runs WHERE status <> 'running' AND created < ? LIMIT 1"
PURGE = """
DELETE FROM runs WHERE number IN (
    SELECT number FROM runs WHERE status <> 'running' AND created < ? ORDER BY created LIMIT ?
)
"""
EXPIRED = "SELECT 1 FROM expired WHERE id = ?"

# Nothing but the version is read when that is the one that was seen last.
LOOK = """
SELECT data_version, CASE WHEN data_version <> :version THEN (
    SELECT json_group_array(json_array(logs.id, seq, cancel, status = 'running'))
    FROM json_each(:runs) AS asked CROSS JOIN logs ON logs.id = asked.value
) END FROM pragma_data_version
"""
