"""Create, open and migrate the file of the store in SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from ..errors import StoreError

#: Seconds that a call waits for a lock that another process holds.
BUSY = 10.0
#: The application id and the format in the file's header.
APPLICATION = 0x464C5354
FORMAT = 3
#: The length of a title made from a question. Format 1 had no titles.
TITLE = 80


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection, for the calling thread only."""
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    # A commit does not wait for the disk. Nothing is lost if the process dies. If the machine
    # crashes, the last commits may be lost, but the file stays consistent.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def prepare(path: Path) -> None:
    """Create the file if it is missing, with permissions for this user only; create its tables.

    Raise StoreError if it cannot be created or used, or if it belongs to another program.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A new file is opened to set its mode, which SQLite copies to its -wal and -shm files. An
        # existing file is not opened: closing it would drop the locks that SQLite has on it.
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        if not path.is_file():  # else another worker has just created it
            raise StoreError(
                f"{path} cannot be created: {error.filename} is not a folder"
            ) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be created: {error.strerror}") from error
    for needed in (path, path.parent):  # SQLite creates its -wal and -shm files in the folder
        if not os.access(needed, os.R_OK | os.W_OK):
            raise StoreError(f"{needed} is not readable and writable")
    try:
        with closing(connect(path)) as connection:
            _check(connection, path)
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is not an SQLite database: {error}") from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
    application, version, tables = connection.execute(_HEADER).fetchone()
    if (application, version, tables) == (0, 0, 0):
        _use_wal(connection)
        _migrate(connection)
    elif application != APPLICATION:
        raise StoreError(f"{path} belongs to another program: use another file")
    elif version in (1, 2):
        _migrate(connection)
    elif version != FORMAT:
        raise StoreError(
            f"{path} has format {version}, and this version of flask_stream reads {FORMAT}: "
            "install the version that wrote it, or use another file"
        )


def _use_wal(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # Another worker is starting, too. SQLite does not wait for the lock in this case.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection) -> None:
    """Create the tables, or migrate them from format 1 or 2, in one transaction."""
    connection.create_function("title_of", 1, _title_of, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    _, version, _ = connection.execute(_HEADER).fetchone()
    steps = {
        0: (*_TABLES, *_SET_FORMAT),
        1: (*_FROM_1, *_FROM_2, *_TABLES, _FILL_CONVERSATIONS, *_SET_FORMAT),
        2: (*_FROM_2, *_TABLES, *_SET_FORMAT),
    }
    for statement in steps.get(version, ()):  # empty if another worker has done it
        connection.execute(statement)
    connection.execute("COMMIT")


def _title_of(input: str) -> str:
    """Return the title of a conversation of format 1, from the input of its first run."""
    try:
        question = json.loads(input)["question"]
    except (ValueError, LookupError, TypeError):
        return ""
    return question[:TITLE].encode(errors="replace").decode() if isinstance(question, str) else ""


# One statement, so that a file that another worker is creating is seen either before or after.
_HEADER = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""

# Because of the triggers, the start, the end and the removal of a run need one statement each.
# `runs.title` only passes the title to the trigger that creates the conversation. `expired` holds
# the last 100,000 runs that were purged; the trigger adds no run whose conversation was deleted,
# because the conversation's row is deleted first. `runs.input` comes after the columns that change,
# so that a long input is not written again with them.
_TABLES = (
    """
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
    lease_token TEXT NOT NULL,
    lease REAL NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0,
    input TEXT NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    started INTEGER,
    first_chunk INTEGER,
    ended INTEGER
)""",
    "CREATE INDEX IF NOT EXISTS live ON runs (lease) WHERE status = 'running'",
    "CREATE INDEX IF NOT EXISTS over ON runs (created) WHERE status <> 'running'",
    "CREATE INDEX IF NOT EXISTS live_of ON runs (principal, conversation) WHERE status = 'running'",
    "CREATE INDEX IF NOT EXISTS runs_in ON runs (principal, conversation, created, id)",
    """
CREATE TABLE IF NOT EXISTS batches (
    run INTEGER NOT NULL,
    last INTEGER NOT NULL,
    status TEXT,
    payload TEXT NOT NULL,
    started INTEGER,
    first_chunk INTEGER,
    ended INTEGER,
    answer TEXT,
    PRIMARY KEY (run, last)
)""",
    # The answer is stored once, in the batch that contains the run's end.
    """
CREATE VIEW IF NOT EXISTS logs AS
    SELECT *, coalesce((SELECT max(last) FROM batches WHERE run = number), 0) AS seq,
    (SELECT answer FROM batches WHERE run = number ORDER BY last DESC LIMIT 1) AS answer
    FROM runs""",
    """
CREATE TABLE IF NOT EXISTS conversations (
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    title TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    PRIMARY KEY (principal, id)
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS latest ON conversations (principal, updated, id)",
    """
CREATE TABLE IF NOT EXISTS expired (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    principal TEXT NOT NULL DEFAULT ''
)""",
    """
CREATE TABLE IF NOT EXISTS passing (
    key TEXT PRIMARY KEY,
    value NOT NULL,
    until REAL NOT NULL
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS passed ON passing (until)",
    """
CREATE TRIGGER IF NOT EXISTS started AFTER INSERT ON runs BEGIN
    INSERT INTO conversations (principal, id, title, created, updated)
    VALUES (new.principal, new.conversation, new.title, new.created, new.created)
    ON CONFLICT (principal, id) DO UPDATE SET updated = excluded.updated
    WHERE excluded.updated > updated;
END""",
    """
CREATE TRIGGER IF NOT EXISTS advanced AFTER INSERT ON batches
WHEN coalesce(new.status, new.started, new.first_chunk) IS NOT NULL BEGIN
    UPDATE runs SET status = coalesce(new.status, status), ended = new.ended,
    started = coalesce(new.started, started), first_chunk = coalesce(new.first_chunk, first_chunk)
    WHERE number = new.run;
END""",
    """
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON runs BEGIN
    DELETE FROM batches WHERE run = old.number;
    INSERT OR REPLACE INTO expired (id, principal) SELECT old.id, old.principal
    FROM conversations WHERE principal = old.principal AND id = old.conversation;
    DELETE FROM expired WHERE number <= (SELECT max(number) FROM expired) - 100000;
    DELETE FROM conversations WHERE principal = old.principal AND id = old.conversation
    AND NOT EXISTS (
        SELECT 1 FROM runs WHERE principal = old.principal AND conversation = old.conversation
    );
END""",
    """
CREATE TRIGGER IF NOT EXISTS forgotten AFTER DELETE ON conversations BEGIN
    DELETE FROM runs WHERE principal = old.principal AND conversation = old.id;
END""",
    """
CREATE TRIGGER IF NOT EXISTS swept AFTER INSERT ON passing BEGIN
    DELETE FROM passing WHERE key <> new.key AND key IN (
        SELECT key FROM passing
        WHERE until <= (julianday('now') - 2440587.5) * 86400.0 ORDER BY until LIMIT 10
    );
END""",
)
_SET_FORMAT = (f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {FORMAT}")

# Changes from format 1 that `_TABLES` does not make.
_FROM_1 = (
    "ALTER TABLE runs ADD COLUMN title TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE expired ADD COLUMN principal TEXT NOT NULL DEFAULT ''",
    "DROP TRIGGER removed",
)
# Changes from format 2. Batches stay unchanged, because lines without times can be read.
_FROM_2 = (
    "DROP VIEW logs",
    "DROP TRIGGER ended",
    "ALTER TABLE runs RENAME COLUMN owner TO lease_token",
    *(
        f"ALTER TABLE runs ADD COLUMN {name} INTEGER"
        for name in ("started", "first_chunk", "ended")
    ),
    *(
        f"ALTER TABLE batches ADD COLUMN {column}"
        for column in ("started INTEGER", "first_chunk INTEGER", "ended INTEGER", "answer TEXT")
    ),
)
# With min(created), SQLite takes `input` from the row that has the lowest `created`.
_FILL_CONVERSATIONS = """
INSERT INTO conversations (principal, id, title, created, updated)
SELECT principal, conversation, title_of(input), min(created), (
    SELECT max(created) FROM runs AS last
    WHERE last.principal = runs.principal AND last.conversation = runs.conversation
) FROM runs GROUP BY principal, conversation
"""
