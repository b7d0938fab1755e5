"""What the SQLite store alone can do: several processes, locks, a writer that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flask_stream.errors import StoreError
from flask_stream.events import new_id
from flask_stream.stores import sqlite_file
from flask_stream.stores.base import Run
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
    """While this lasts nobody can write."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `text`."""
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
    """One of several processes that do everything at once, from opening the file on."""
    time.sleep(max(0, at - time.time()))
    store = SqliteStore(path)
    me = new_id()
    created = store.create(shared, me, 60) is None
    runs = [started(store, me) for _ in range(10)]
    adopted: list[str] = []
    for after in range(30):
        assert all(store.append([batch(run, after, owner=me) for run in runs]))
        adopted += [run.id for run in store.adopt(me, 60, lost)]
    assert all(store.append([ending(run, 30, owner=me) for run in runs]))
    store.close()
    return created, [run.id for run in runs], adopted


def test_processes_share_a_file(path: Path) -> None:
    shared = new_run()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        list(pool.map(time.sleep, [0.1] * PROCESSES))  # until they are up
        at = time.time() + 0.3
        done = [pool.submit(work, path, shared, 3, at) for _ in range(PROCESSES)]
        with closing(SqliteStore(path)) as store:  # it makes the file as early as they do
            lost = [started(store, lease=0.001) for _ in range(20)]
            results = [each.result(60) for each in done]
            assert [created for created, _, _ in results].count(True) == 1
            adopted = [run for _, _, runs in results for run in runs]
            assert len(adopted) == len(set(adopted))
            assert set(adopted) <= {run.id for run in lost}
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
    while not (adopted := store.adopt("you", 60, 10)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [each.id for each in adopted] == [run]
    assert store.append([ending(there, there.seq, owner="you")]) == [True]


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


def test_what_is_locked_for_writing_can_be_read(path: Path, store: SqliteStore) -> None:
    run = started(store)
    store.append([batch(run, 0, 5)])
    with locked(path):
        assert found(store, run).seq == 5
        assert whole(store, run) == events(0, 5)
        assert store.adopt("you", 60, 10) == []
        assert store.purge(0, 10) == 0


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


def test_a_lock_stalls_no_other_greenlet(path: Path) -> None:
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
        ("no database at all, but text" * 100, "is no database of SQLite"),
        ("CREATE TABLE theirs (x)", "is the database of another program"),
        ("PRAGMA application_id = 7", "is the database of another program"),
        (
            f"PRAGMA application_id = {sqlite_file.APPLICATION}; PRAGMA user_version = 99",
            "has format 99, and this version of flask_stream reads 1",
        ),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(
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
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=str(tmp_path / place)):
        SqliteStore(tmp_path / place)


def test_nobody_follows_and_the_file_is_left_in_peace(
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


@pytest.mark.parametrize(
    "statement",
    [
        *(sqlite_file.GET, sqlite_file.insert(8), sqlite_file.READ, sqlite_file.RENEW),
        *(sqlite_file.RENEWED, sqlite_file.OVERDUE, sqlite_file.ADOPT, sqlite_file.ADOPTED),
        *(sqlite_file.OLD, sqlite_file.PURGE, sqlite_file.EXPIRED, sqlite_file.LOOK),
    ],
)
def test_no_statement_reads_a_whole_table(path: Path, store: SqliteStore, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        names = {"run": "", "after": 0, "limit": 1, "leases": "{}", "lease": 1, "version": 0}
        values = names | {"runs": "[]"} if ":" in statement else [""] * statement.count("?")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    tables = ("SCAN runs", "SCAN batches", "SCAN expired", "USE TEMP B-TREE")
    assert not [step for step in plan if step.startswith(tables)], plan
