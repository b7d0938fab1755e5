"""Tests of the SQLite store only: several processes, locks, killed writers, old formats."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flask_stream.errors import StoreError
from flask_stream.events import new_id
from flask_stream.stores import sqlite_file, sqlite_statements
from flask_stream.stores.base import Conversation, LeaseState, Run
from flask_stream.stores.sqlite import SqliteStore

from .test_stores import batch, ending, events, found, new_run, started, whole

ROOT = Path(__file__).parent.parent
PROCESSES = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "log.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file for writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )


def output(text: str, *arguments: object) -> str:
    with script(text, *arguments) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return said


# Several processes


def work(path: Path, shared: Run, lost: int, at: float) -> tuple[bool, list[str], list[str]]:
    """Use the store as one of several concurrent processes, from opening the file on."""
    time.sleep(max(0, at - time.time()))
    store = SqliteStore(path)
    me = new_id()
    created = store.create(shared, me, 60) is None
    runs = [started(store, me) for _ in range(10)]
    taken: list[str] = []
    for after in range(30):
        assert all(store.append([batch(run, after, lease_token=me) for run in runs]))
        taken += [run.id for run in store.take_over(me, 60, lost)]
    assert all(store.append([ending(run, 30, lease_token=me) for run in runs]))
    store.close()
    return created, [run.id for run in runs], taken


def test_processes_share_a_file(path: Path) -> None:
    shared = new_run()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        list(pool.map(time.sleep, [0.1] * PROCESSES))  # lets the processes start
        at = time.time() + 0.3
        done = [pool.submit(work, path, shared, 3, at) for _ in range(PROCESSES)]
        with closing(SqliteStore(path)) as store:  # created at the same time as by the processes
            lost = [started(store, lease=0.001) for _ in range(20)]
            results = [each.result(60) for each in done]
            assert [created for created, _, _ in results].count(True) == 1
            taken = [run for _, _, runs in results for run in runs]
            assert len(taken) == len(set(taken))
            assert set(taken) <= {run.id for run in lost}
            for run in (run for _, runs, _ in results for run in runs):
                there = store.get(run)
                assert there is not None
                assert there.status == "done"
                assert [event.seq for event in whole(store, there, 7)] == list(range(1, 32))


def test_a_store_made_before_a_fork_serves_both_sides(path: Path) -> None:
    said = output(
        """
import os, sys
from tests.test_stores import batch, started, whole
from flask_stream.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
children = []
for _ in range(2):
    if (child := os.fork()) == 0:
        run = started(store)
        done = all(store.append([batch(run, after)])[0] for after in range(50))
        done = done and len(whole(store, run)) == 50
        store.close()
        os._exit(0 if done else 1)
    children.append(child)
run = started(store)
assert all(store.append([batch(run, after)])[0] for after in range(50))
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
store.close()
""",
        path,
    )
    assert said == "[0, 0]\n"


def test_a_killed_writer_leaves_a_log_without_a_gap(path: Path, store: SqliteStore) -> None:
    writer = script(
        """
import sys
from tests.test_stores import batch, started
from flask_stream.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
run = started(store, lease=0.5)
print(run.id, flush=True)
after = 0
while True:
    assert store.append([batch(run, after, 3)]) == [True]
    after += 3
    print(after, flush=True)
""",
        path,
    )
    with writer:
        assert writer.stdout is not None
        run = writer.stdout.readline().strip()
        stored = [int(writer.stdout.readline()) for _ in range(200)]
        os.kill(writer.pid, signal.SIGKILL)
        stored += [int(line) for line in writer.stdout if line.endswith("\n")]
    there = store.get(run)
    assert there is not None
    assert there.seq in (stored[-1], stored[-1] + 3)
    assert whole(store, there, 100) == events(0, there.seq)
    until = time.monotonic() + 20
    while not (taken := store.take_over("you", 60, 10)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [each.id for each in taken] == [run]
    assert store.append([ending(there, there.seq, lease_token="you")]) == [True]


# Locks


def test_a_lock_delays_and_loses_nothing(path: Path, store: SqliteStore) -> None:
    run = started(store)
    with ThreadPoolExecutor(2) as pool:
        with locked(path):
            append = pool.submit(store.append, [batch(run, 0, 5)])
            renew = pool.submit(store.renew, {run.id: "me"}, 60)
            time.sleep(1.5)
            assert not append.done()
            assert not renew.done()
        assert append.result(20) == [True]
        assert len(renew.result(20)) == 1
    assert whole(store, run) == events(0, 5)


def test_a_file_locked_for_writing_can_be_read(path: Path, store: SqliteStore) -> None:
    run = started(store)
    store.append([batch(run, 0, 5)])
    with locked(path):
        assert found(store, run).seq == 5
        assert whole(store, run) == events(0, 5)
        assert store.take_over("you", 60, 10) == []
        assert len(store.purge(0, 10)) == 0


def test_a_lock_that_lasts_is_an_error_and_the_call_may_be_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY", 0.2)
    with closing(SqliteStore(path)) as store:
        run = started(store)
        with locked(path), pytest.raises(StoreError, match="database is locked"):
            store.append([batch(run, 0)])
        assert store.append([batch(run, 0)]) == [True]
        assert whole(store, run) == events(0, 1)


def test_a_lock_does_not_block_other_greenlets(path: Path) -> None:
    said = output(
        """
from gevent import monkey
monkey.patch_all()
import json, sqlite3, sys, time
import gevent
from tests.test_stores import batch, started, whole
from flask_stream.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
run = started(store)
ticks = []

def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)

lock = sqlite3.connect(sys.argv[1], isolation_level=None)
lock.execute("BEGIN IMMEDIATE")
ticker = gevent.spawn(tick)
appends = [gevent.spawn(store.append, [batch(run, 0)]) for _ in range(20)]
gevent.sleep(1.5)
waiting = not any(append.ready() for append in appends)
ticker.kill()
lock.execute("COMMIT")
lock.close()
gevent.joinall(appends, raise_error=True)
stored = all(append.value == [True] for append in appends) and len(whole(store, run)) == 1
store.close()
longest = max(after - before for before, after in zip(ticks, ticks[1:]))
print(json.dumps({"ticks": len(ticks), "longest": longest, "waiting": waiting, "stored": stored}))
""",
        path,
    )
    seen = json.loads(said)
    assert seen["waiting"]
    assert seen["stored"]
    assert seen["ticks"] > 30
    assert seen["longest"] < 0.7


def test_an_error_is_raised_where_the_call_was_made_under_gevent(path: Path) -> None:
    said = output(
        """
from gevent import monkey
monkey.patch_all()
import sys, threading
from flask_stream.errors import StoreError
from flask_stream.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
threading.Timer(0.1, store.watch, ["0" * 32]).start()
print([news.run for news in store.news(20)])
with open(sys.argv[1], "r+b") as file:
    file.write(b"no longer a database" * 1000)
try:
    store.get("0" * 32)
except StoreError as error:
    print("StoreError")
store.close()
""",
        path,
    )
    assert said == f"['{'0' * 32}']\nStoreError\n"


# The file


def test_file_and_folder_are_for_this_user_alone(path: Path, store: SqliteStore) -> None:
    started(store)
    modes = {
        each.name: each.stat().st_mode & 0o777 for each in (path.parent, *path.parent.iterdir())
    }
    assert modes.pop(path.parent.name) == 0o700
    assert set(modes) == {"log.db", "log.db-wal", "log.db-shm"}
    assert set(modes.values()) == {0o600}


def test_a_log_survives_its_store(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        run = started(store)
        store.append([ending(run, 0, 5)])
    with closing(SqliteStore(path)) as store:
        assert found(store, run).status == "done"
        assert len(whole(store, run)) == 5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("no database at all, but text" * 100, "is not an SQLite database"),
        ("CREATE TABLE theirs (x)", "belongs to another program"),
        ("PRAGMA application_id = 7", "belongs to another program"),
        (
            f"PRAGMA application_id = {sqlite_file.APPLICATION}; PRAGMA user_version = 99",
            "has format 99, and this version of flask_stream reads 3",
        ),
    ],
)
def test_a_file_of_another_program_is_not_changed(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "theirs"
    if content.startswith("no"):
        path.write_text(content)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(content)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=problem) as caught:
        SqliteStore(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["", "file/log.db", "file/folder/log.db"])
def test_a_path_that_cannot_be_created_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=str(tmp_path / place)):
        SqliteStore(tmp_path / place)


def test_without_watched_runs_the_file_is_not_polled(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(sqlite_file, "connect", opened.append)
    assert store.news(0.2) == []
    assert opened == []


def test_a_closed_store_says_so(store: SqliteStore) -> None:
    started(store)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.get(new_id())


def test_format_and_application_are_what_the_file_says(path: Path, store: SqliteStore) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (sqlite_file.APPLICATION,)
        assert connection.execute("PRAGMA user_version").fetchone() == (sqlite_file.FORMAT,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


#: Every statement with its values.
STATEMENTS = {
    name: statement
    for name, statement in vars(sqlite_statements).items()
    if name.isupper() and not name.startswith("_")
} | {"INSERT": sqlite_statements.insert(8)}


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_a_whole_table(path: Path, store: SqliteStore, name: str) -> None:
    steps = plan(path, STATEMENTS[name])
    assert not [step for step in steps if "SCAN" in step and step.split()[1] in TABLES], steps
    assert not [step for step in steps if step.startswith("USE TEMP B-TREE")], steps


TABLES = {"runs", "batches", "expired", "conversations", "passing", "logs"}


def plan(path: Path, statement: str) -> list[str]:
    values: dict[str, str] | list[str] = [""] * statement.count("?")
    if names := re.findall(r":(\w+)", statement):
        values = dict.fromkeys(names, "") | {"leases": "{}", "runs": "[]"}
    with closing(sqlite3.connect(path)) as connection:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


def test_live_runs_are_counted_among_live_runs_alone(path: Path, store: SqliteStore) -> None:
    for name in ("CREATE", "REFUSAL"):
        searches = [step for step in plan(path, STATEMENTS[name]) if "SEARCH runs" in step]
        assert len(searches) == 2
        assert all("USING INDEX live_of (principal=?" in step for step in searches), searches


def test_expired_counters_and_claims_are_deleted(path: Path, store: SqliteStore) -> None:
    for number in range(50):
        store.count(f"count-{number}", 1, 0.001)
        store.claim(f"claim-{number}", "", 0.001)
    time.sleep(0.02)
    store.count("kept", 1, 60)
    for number in range(20):
        store.claim(f"more-{number}", "", 60)
    with closing(sqlite3.connect(path)) as connection:
        keys = {key for (key,) in connection.execute("SELECT key FROM passing")}
    assert keys == {"count:kept"} | {f"claim:more-{number}" for number in range(20)}


def test_a_deleted_conversation_is_in_no_table(path: Path, store: SqliteStore) -> None:
    run = started(store, principal="ann")
    store.append([batch(run, 0, 5)])
    assert store.delete_conversation("ann", run.conversation)
    with closing(sqlite3.connect(path)) as connection:
        for table in TABLES:
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


# An earlier format

#: The tables of format 1.
FORMAT_1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE runs (
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
CREATE INDEX live ON runs (lease) WHERE status = 'running';
CREATE INDEX over ON runs (created) WHERE status <> 'running';
CREATE TABLE batches (
    run INTEGER NOT NULL,
    last INTEGER NOT NULL,
    status TEXT,
    payload TEXT NOT NULL,
    PRIMARY KEY (run, last)
);
CREATE VIEW logs AS
    SELECT *, coalesce((SELECT max(last) FROM batches WHERE run = number), 0) AS seq FROM runs;
CREATE TABLE expired (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE
);
CREATE TRIGGER ended AFTER INSERT ON batches WHEN new.status IS NOT NULL BEGIN
    UPDATE runs SET status = new.status WHERE number = new.run;
END;
CREATE TRIGGER removed AFTER DELETE ON runs BEGIN
    DELETE FROM batches WHERE run = old.number;
    INSERT OR REPLACE INTO expired (id) VALUES (old.id);
    DELETE FROM expired WHERE number <= (SELECT max(number) FROM expired) - 100000;
END;
PRAGMA application_id = 0x464C5354;
PRAGMA user_version = 1;
"""


def of_format_1(path: Path, runs: list[Run], lease_token: str = "me", lease: float = 60) -> None:
    """Create a file of format 1 whose runs have two events each."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FORMAT_1)
        for run in runs:
            connection.execute(
                "INSERT INTO runs (id, chain, conversation, parent, principal, created, status,"
                " attempt, owner, lease, input) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run.id, run.chain, run.conversation, run.parent, run.principal, run.created),
                    *(run.status, run.attempt, lease_token, time.time() + lease, run.input),
                ),
            )
            payload = 'chunk\t{"content":"word"}\nchunk\t{"content":"word"}'
            connection.execute(
                "INSERT INTO batches SELECT max(number), 2, NULL, ? FROM runs", (payload,)
            )
        connection.execute("INSERT INTO expired (id) VALUES (?)", ("gone" * 8,))
        connection.commit()


def test_a_file_of_format_1_is_migrated_with_all_of_its_data(path: Path) -> None:
    first = new_run(created=1000.5, status="done", seq=2, input='{"question":"Why? \\u00c4"}')
    second = replace(first, id=new_id(), created=2000.25, input='{"question":"And then?"}')
    early = replace(first, id=new_id(), created=1500.0, input='{"question":"Between"}')
    anns = replace(second, id=new_id(), principal="ann", status="running")
    of_format_1(path, [second, first, early, anns])
    for _ in range(2):  # the second time, nothing changes
        with closing(SqliteStore(path)) as store:
            id = first.conversation
            assert store.runs("", id) == [first, early, second]
            assert store.conversations("", 10) == [Conversation(id, "", "Why? Ä", 1000.5, 2000.25)]
            assert store.conversations("ann", 10) == [
                Conversation(id, "ann", "And then?", 2000.25, 2000.25)
            ]
            assert whole(store, first) == events(0, 2)
            assert store.expired_principal("gone" * 8) == ""
            # The worker that holds the run can continue it, and any worker can cancel it.
            assert store.renew({anns.id: "me"}, 60) == {anns.id: LeaseState.YES}
    with closing(SqliteStore(path)) as store:
        assert store.append([ending(anns, 2)]) == [True]
        assert len(store.purge(10, 10)) == 4
        assert store.conversations("", 10) == store.conversations("ann", 10) == []
        assert store.expired_principal(anns.id) == "ann"
        started(store, principal="ann", conversation=id)
        assert store.delete_conversation("ann", id)


@pytest.mark.parametrize(
    ("input", "title"),
    [
        ('{"question":"' + "x" * 200 + '"}', "x" * 80),
        ('{"question":"\\ud800 \\u0000?"}', "? \0?"),
        ('{"question":["a","b"]}', ""),
        ('{"topic":"a"}', ""),
        ('["question"]', ""),
        ("no JSON", ""),
    ],
)
def test_a_conversation_of_format_1_gets_its_question_as_title(
    path: Path, input: str, title: str
) -> None:
    run = new_run(input=input)
    of_format_1(path, [run])
    with closing(SqliteStore(path)) as store:
        (conversation,) = store.conversations("", 10)
        assert conversation.title == title
        assert found(store, run).input == input


def test_workers_that_start_together_migrate_a_file_once(path: Path) -> None:
    runs = [new_run(created=1000.0 + number) for number in range(200)]
    of_format_1(path, runs)
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(SqliteStore, [path] * 8))
    for store in stores:
        assert len(store.conversations("", 1000)) == 200
        store.close()


def test_a_file_that_cannot_be_migrated_is_not_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    of_format_1(path, [run])
    monkeypatch.setattr(sqlite_file, "_FILL_CONVERSATIONS", "INSERT INTO nowhere VALUES (1)")
    with pytest.raises(StoreError, match="no such table: nowhere"):
        SqliteStore(path)
    monkeypatch.undo()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    with closing(SqliteStore(path)) as store:
        assert len(store.conversations("", 10)) == 1
        assert found(store, run).seq == 2


def test_a_running_worker_of_an_earlier_format_writes_nothing(path: Path) -> None:
    """Its leases expire, so that it can neither write lines without times nor keep a run."""
    of_format_1(path, [run := new_run()])
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        assert old.execute("SELECT seq FROM logs WHERE id = ?", (run.id,)).fetchone() == (2,)
        with closing(SqliteStore(path)) as store:
            with pytest.raises(sqlite3.OperationalError, match="no such column"):
                old.execute(
                    "INSERT INTO batches (run, last, status, payload) SELECT number, 3, NULL, ?"
                    " FROM logs WHERE id = ? AND logs.owner = ?",
                    ("chunk\t{}", run.id, "me"),
                )
            assert found(store, run).seq == 2


#: The changes from format 1 to format 2.
FORMAT_2 = """
ALTER TABLE runs ADD COLUMN title TEXT NOT NULL DEFAULT '';
ALTER TABLE expired ADD COLUMN principal TEXT NOT NULL DEFAULT '';
CREATE INDEX live_of ON runs (principal, conversation) WHERE status = 'running';
CREATE INDEX runs_in ON runs (principal, conversation, created, id);
CREATE TABLE conversations (
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    title TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    PRIMARY KEY (principal, id)
) WITHOUT ROWID;
CREATE INDEX latest ON conversations (principal, updated, id);
CREATE TABLE passing (
    key TEXT PRIMARY KEY,
    value NOT NULL,
    until REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX passed ON passing (until);
DROP TRIGGER removed;
CREATE TRIGGER removed AFTER DELETE ON runs BEGIN
    DELETE FROM batches WHERE run = old.number;
    DELETE FROM conversations WHERE principal = old.principal AND id = old.conversation;
END;
PRAGMA user_version = 2;
"""


def test_a_file_of_format_2_is_migrated_and_its_logs_are_read_without_times(path: Path) -> None:
    done = new_run(created=1000.5, status="done", seq=2)
    live = new_run(created=2000.5, seq=2)
    of_format_1(path, [done, live])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FORMAT_2)
        connection.execute(
            "INSERT INTO conversations SELECT principal, conversation, 'kept', created, created"
            " FROM runs"
        )
        connection.execute("INSERT INTO passing VALUES ('count:a', 7, 9e9)")
        connection.commit()
    for _ in range(2):
        with closing(SqliteStore(path)) as store:
            assert (found(store, done), found(store, live)) == (done, live)
            assert whole(store, done) == whole(store, live) == events(0, 2)
            assert store.conversation("", done.conversation) == Conversation(
                done.conversation, "", "kept", 1000.5, 1000.5
            )
            assert store.count("a", 0, 1) == 7
            assert store.renew({live.id: "me"}, 60) == {live.id: LeaseState.YES}
    with closing(SqliteStore(path)) as store:
        end = ending(live, 2)._replace(started=1, first_chunk=2, answer='"a"')
        assert store.append([end]) == [True]
        assert found(store, live) == replace(
            live, status="done", seq=3, started=1, first_chunk=2, ended=0, answer='"a"'
        )
        assert [event.seq for event in whole(store, live)] == [1, 2, 3]
