"""Tests of the Redis store only: restarts, freezes, full memory, lost connections, bad settings.

`test_stores` tests the contract of stores, with all stores.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from flask_stream.errors import ConfigError, StoreError
from flask_stream.events import Event, new_id
from flask_stream.redis_connection import connection_pool, unfit, without_secrets
from flask_stream.registry import open_checkpoints
from flask_stream.stores.base import (
    Batch,
    Conversation,
    CreateConditions,
    News,
    Run,
    TooManyLiveRuns,
)
from flask_stream.stores.redis import RedisStore

from .server import ROOT
from .valkey import Valkey

TOKEN = "token" * 6


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    store = RedisStore(valkey.url)
    yield store
    store.close()


@pytest.fixture
def admin(valkey: Valkey) -> Iterator[Any]:
    with Redis(port=valkey.port) as client:
        yield client


def new_run(principal: str = "", conversation: str = "", created: float | None = None) -> Run:
    return Run(
        *(new_id(), "chat", conversation or new_id(), None, principal),
        *('{"question":"?"}', created or time.time()),
    )


def a_run(store: RedisStore, created: float | None = None) -> str:
    """Create a live run that TOKEN holds; return its id."""
    run = new_run(created=created)
    assert store.create(run, TOKEN, 60) is None
    return run.id


def a_batch(run: str, after: int, count: int = 1, status: str | None = None) -> Batch:
    seqs = range(after + 1, after + count + 1)
    return Batch(run, TOKEN, after, [Event(seq, "chunk", f'{{"n":{seq}}}') for seq in seqs], status)


def news_until(store: RedisStore, enough: Callable[[set[News]], bool]) -> set[News]:
    """Return the news received until it is enough."""
    received: set[News] = set()
    until = time.monotonic() + 20
    while not enough(received):
        assert time.monotonic() < until, f"only {received}"
        try:
            received |= set(store.news(1.0))
        except StoreError:
            time.sleep(0.05)
    return received


def quiet(store: RedisStore) -> None:
    """Discard the news that is left."""
    while store.news(0.2):
        pass


def insist(store: RedisStore, batches: list[Batch]) -> tuple[list[bool], int]:
    """Append, repeating the call until the store answers; return also the number of failures."""
    for failures in range(1000):
        try:
            return store.append(batches), failures
        except StoreError:
            time.sleep(0.02)
    raise AssertionError("the store did not come back")


# Restarts, freezes, full memory


def test_a_restarted_server_has_lost_its_scripts_and_kept_the_log() -> None:
    with Valkey(appendonly=True) as valkey:
        store = RedisStore(valkey.url)
        run = a_run(store)
        assert store.append([a_batch(run, 0, 3)]) == [True]
        valkey.restart()
        assert insist(store, [a_batch(run, 3, 2)])[0] == [True]
        assert insist(store, [a_batch(run, 0, 3)])[0] == [True], "the first batch is still there"
        assert [event.seq for event in store.read(run, 0, 100)] == [1, 2, 3, 4, 5]
        valkey.restart()
        assert [event.seq for event in store.read(run, 2, 100)] == [3, 4, 5]
        valkey.restart()
        assert store.renew({run: TOKEN}, 60)[run].value == "yes"
        store.close()


def test_a_flushed_server_refuses_writes_to_lost_runs(valkey: Valkey, store: RedisStore) -> None:
    run = a_run(store)
    store.append([a_batch(run, 0)])
    valkey.restart()
    assert insist(store, [a_batch(run, 1)])[0] == [False]
    assert store.get(run) is None


def test_without_a_server_a_store_error_is_raised_without_the_password() -> None:
    with Valkey(requirepass="s3cret") as valkey:
        url = valkey.url.replace("//", "//:s3cret@")
        store = RedisStore(url)
        run = a_run(store)
        valkey.halt()
        calls: list[Callable[[], object]] = [
            lambda: store.append([a_batch(run, 0)]),
            lambda: store.read(run, 0, 10),
            lambda: store.get(run),
            lambda: store.branch(run, 9),
            lambda: store.newest("", run),
            lambda: store.expired_principal(run),
            lambda: store.cancel(run),
            lambda: store.renew({run: TOKEN}, 1),
            lambda: store.take_over(TOKEN, 1, 1),
            lambda: store.purge(1, 1),
            lambda: store.create(new_run(), TOKEN, 1),
            lambda: store.conversations("", 1),
            lambda: store.conversation("", run),
            lambda: store.runs("", run),
            lambda: store.rename_conversation("", run, "title"),
            lambda: store.delete_conversation("", run),
            lambda: store.count("key", 0, 1),
            lambda: store.count("key", 1, 1),
            lambda: store.claim("key", "value", 1),
            lambda: store.release_claim("key", "value"),
            lambda: store.news(1),
        ]
        for call in calls:
            with pytest.raises(StoreError) as error:
                call()
            assert "s3cret" not in str(error.value)
            assert str(valkey.port) in str(error.value)
        store.close()


def test_a_frozen_server_loses_and_doubles_nothing(valkey: Valkey) -> None:
    store = RedisStore(valkey.url, timeout=0.3)
    runs = [a_run(store) for _ in range(20)]
    failed = 0
    thaw = threading.Timer(2.5, valkey.resume)
    for turn in range(40):
        if turn == 10:
            valkey.pause()
            thaw.start()
        batches = [a_batch(run, 3 * turn, 3) for run in runs]
        answers, failures = insist(store, batches)
        assert answers == [True] * len(runs)
        failed += failures
    thaw.join()
    assert failed > 0, "the freeze was not noticed"
    for run in runs:
        events = store.read(run, 0, 1000)
        assert [event.seq for event in events] == list(range(1, 121))
        assert [event.value()["n"] for event in events] == list(range(1, 121))
    store.close()


def test_waiting_for_a_connection_to_a_frozen_server_times_out(valkey: Valkey) -> None:
    store = RedisStore(valkey.url, timeout=0.3)
    run = a_run(store)
    valkey.pause()
    failures: list[StoreError] = []

    def read() -> None:
        try:
            store.read(run, 0, 10)
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    valkey.resume()
    assert len(failures) == 50
    store.close()


def test_a_full_server_stores_a_call_whole_or_not_at_all(
    valkey: Valkey, store: RedisStore, admin: Any
) -> None:
    run, other = a_run(store), a_run(store)
    assert store.append([a_batch(run, 0)]) == [True]
    admin.config_set("maxmemory", 1)
    batches = [a_batch(run, 1, 2), a_batch(other, 0, 2, "done")]
    with pytest.raises(StoreError, match="maxmemory"):
        store.append(batches)
    assert [event.seq for event in store.read(run, 0, 10)] == [1], "stored events can be read"
    assert store.read(other, 0, 10) == []
    admin.config_set("maxmemory", 0)
    assert store.append(batches) == [True, True]
    assert [event.seq for event in store.read(run, 0, 10)] == [1, 2, 3]


def test_a_full_server_purges_and_deletes(valkey: Valkey, store: RedisStore, admin: Any) -> None:
    old, live = a_run(store, created=time.time() - 100), new_run("ann")
    assert store.create(live, TOKEN, 60) is None
    store.append([a_batch(old, 0, status="done"), a_batch(live.id, 0)])
    admin.config_set("maxmemory", 1)
    with pytest.raises(StoreError, match="maxmemory"):
        a_run(store)
    assert len(store.purge(50, 10)) == 1
    assert store.expired_principal(old) == ""
    assert store.delete_conversation("ann", live.conversation)
    admin.config_set("maxmemory", 0)
    assert [key.decode() for key in admin.keys("*")] == [f"flask_stream:gone:{old}"]


def test_a_server_that_became_a_replica_is_a_store_error(
    valkey: Valkey, store: RedisStore, admin: Any
) -> None:
    run = a_run(store)
    with Valkey() as primary:
        admin.replicaof("127.0.0.1", primary.port)
        with pytest.raises(StoreError, match=r"(?i)read only|MASTERDOWN"):
            store.append([a_batch(run, 0)])
        admin.replicaof("NO", "ONE")
    assert store.append([a_batch(a_run(store), 0)]) == [True]


def test_a_batch_longer_than_a_page_is_read_from_any_place(store: RedisStore) -> None:
    run = a_run(store)
    store.append([a_batch(run, 0, 2), a_batch(run, 2, 500), a_batch(run, 502, 3)])
    for after in range(505):
        events = store.read(run, after, 10)
        assert events[0].seq == after + 1
        assert [event.seq for event in events] == [event.value()["n"] for event in events]
    assert store.read(run, 505, 10) == []


def test_another_batch_with_the_same_seqs_is_refused(store: RedisStore) -> None:
    run = a_run(store)
    store.append([a_batch(run, 0, 3)])
    other = a_batch(run, 0, 3)._replace(events=[Event(seq, "chunk", "{}") for seq in (1, 2, 3)])
    assert store.append([a_batch(run, 0, 3), other]) == [True, False]


def test_only_the_principals_of_purged_runs_have_a_time_to_live(
    store: RedisStore, admin: Any
) -> None:
    old, live = a_run(store, created=time.time() - 100), a_run(store)
    store.append([a_batch(old, 0, status="done"), a_batch(live, 0)])
    store.cancel(live)
    assert {admin.ttl(key) for key in admin.keys("*")} == {-1}
    assert len(store.purge(50, 10)) == 1
    mortal = [key.decode() for key in admin.keys("*") if admin.ttl(key) != -1]
    assert mortal == [f"flask_stream:gone:{old}"]
    assert not [key for key in admin.keys("*") if old in key.decode() and b"gone" not in key]
    store.append([a_batch(live, 1, status="cancelled")])
    assert len(store.purge(-10, 10)) == 1
    left = {key.decode() for key in admin.keys("*")}
    assert left == {f"flask_stream:gone:{old}", f"flask_stream:gone:{live}"}


# Conversations


def test_a_deleted_conversation_leaves_no_key(store: RedisStore, admin: Any) -> None:
    runs = [new_run("ann", "conversation" * 2) for _ in range(3)]
    for run in runs:
        assert store.create(run, TOKEN, 60) is None
    store.append([a_batch(runs[0].id, 0, status="done"), a_batch(runs[1].id, 0)])
    store.cancel(runs[2].id)
    assert store.rename_conversation("ann", runs[0].conversation, "title")
    assert store.delete_conversation("ann", runs[0].conversation)
    assert admin.keys("*") == []


def test_counters_and_claims_have_a_time_to_live(store: RedisStore, admin: Any) -> None:
    store.count("a", 1, 100)
    store.count("a", 1, 1000)
    store.claim("a", "mine", 100)
    store.claim("a", "mine", 1000)
    store.count("b", 0, 100)
    left = {key.decode(): admin.pttl(key) for key in admin.keys("*")}
    assert left.keys() == {"flask_stream:count:a", "flask_stream:claim:a"}
    assert all(90_000 < ms <= 100_000 for ms in left.values())


def test_a_log_without_times_can_be_read_and_continued(store: RedisStore, admin: Any) -> None:
    """A run that an earlier version stored has `owner` in its hash and no `at` in its lines."""
    run = new_run("ann")
    key, log = f"flask_stream:run:{run.id}", f"flask_stream:log:{run.id}"
    admin.hset(
        key,
        mapping={
            "chain": "chat",
            "conversation": run.conversation,
            "principal": "ann",
            "input": run.input,
            "created": repr(run.created),
            "status": "running",
            "seq": 3,
            "attempt": 1,
            "owner": TOKEN,
        },
    )
    admin.xadd(log, {"e": 'start\t{"run":1}\nchunk\t{"content":"a\\t1"}'}, id="2-0")
    admin.xadd(log, {"e": 'step\t{"node":"b"}'}, id="3-0")
    admin.zadd("flask_stream:live", {run.id: 1000 * (time.time() - 1)})
    old = [
        Event(1, "start", '{"run":1}', 0),
        Event(2, "chunk", '{"content":"a\\t1"}', 0),
        Event(3, "step", '{"node":"b"}', 0),
    ]
    assert store.read(run.id, 0, 10) == old
    assert store.read(run.id, 1, 1) == old[1:2]
    stored = store.get(run.id)
    assert stored is not None
    assert (stored.started, stored.first_chunk, stored.ended, stored.answer) == (None,) * 4
    assert store.create(run, "another", 60) == stored
    assert store.append([Batch(run.id, TOKEN, 3, [Event(4, "chunk", "{}", 5)])]) == [False]
    assert [each.id for each in store.take_over("new", 60, 10)] == [run.id]
    assert admin.hget(key, "owner") is None, "workers of earlier versions must not write"
    end = Batch(run.id, "new", 3, [Event(4, "end", "{}", 5)], "done", answer='"a"')
    assert store.append([end]) == [True]
    assert store.read(run.id, 0, 10) == [*old, Event(4, "end", "{}", 5)]


def before_there_were_conversations(admin: Any, run: Run, status: str) -> None:
    """Store a run with one event as versions without conversations did."""
    fields = {
        "chain": run.chain,
        "conversation": run.conversation,
        "principal": run.principal,
        "input": run.input,
        "created": repr(run.created),
        "status": status,
        "seq": 1,
        "attempt": 1,
        "lease_token": TOKEN,
    }
    admin.hset(f"flask_stream:run:{run.id}", mapping=fields)
    admin.xadd(f"flask_stream:log:{run.id}", {"e": 'chunk\t{"n":1}'}, id="1-0")
    if status == "running":
        admin.zadd("flask_stream:live", {run.id: 1000 * (time.time() + 60)})
    else:
        admin.zadd("flask_stream:ended", {run.id: run.created})


def test_runs_without_a_conversation_can_be_continued_and_purged(
    store: RedisStore, admin: Any
) -> None:
    conversation, then = new_id(), time.time() - 100
    ended, live = (new_run("", conversation, then) for _ in range(2))
    before_there_were_conversations(admin, ended, "done")
    before_there_were_conversations(admin, live, "running")
    admin.set("flask_stream:gone:earlier", "", px=100_000)
    assert store.expired_principal("earlier") == ""
    assert store.conversations("", 10) == []
    assert store.runs("", conversation) == []
    assert store.conversation("", conversation) is None
    assert store.delete_conversation("", conversation) is False
    assert store.append([a_batch(live.id, 1, status="done")]) == [True]
    # The next run begins the conversation; the runs before it belong to none.
    new = new_run("", conversation)
    assert (
        store.create(
            new, TOKEN, 60, CreateConditions(max_live_runs=1, only_live_run=True, title="new")
        )
        is None
    )
    assert store.runs("", conversation) == [new]
    assert len(store.purge(50, 10)) == 2
    assert store.expired_principal(ended.id) == store.expired_principal(live.id) == ""
    wanted = Conversation(conversation, "", "new", new.created, new.created)
    assert store.conversations("", 10) == [wanted]
    assert store.append([a_batch(new.id, 0, status="done")]) == [True]
    assert len(store.purge(-10, 10)) == 1
    assert store.conversations("", 10) == []
    assert all(b":gone:" in key for key in admin.keys("*"))


def test_a_run_that_another_program_deleted_does_not_count_as_live(
    store: RedisStore, admin: Any
) -> None:
    run = new_run("ann")
    conditions = CreateConditions(max_live_runs=1, only_live_run=True)
    assert store.create(run, TOKEN, 0.001, conditions) is None
    admin.delete(f"flask_stream:run:{run.id}", f"flask_stream:log:{run.id}")
    with pytest.raises(TooManyLiveRuns):
        store.create(new_run("ann"), TOKEN, 60, conditions)
    time.sleep(0.01)
    assert store.take_over(TOKEN, 60, 10) == []
    assert store.runs("ann", run.conversation) == []
    assert store.create(new_run("ann", run.conversation), TOKEN, 60, conditions) is None
    assert store.delete_conversation("ann", run.conversation)
    assert admin.keys("*") == []


# News


def test_after_a_reconnection_every_watched_run_is_news(store: RedisStore, admin: Any) -> None:
    runs = {a_run(store) for _ in range(5)}
    everything = {News(run, cancel=False) for run in runs}
    for run in runs:
        store.watch(run)
    news_until(store, everything.issubset)
    quiet(store)
    for _ in range(3):
        assert admin.client_kill_filter(_type="pubsub") == 1
        news_until(store, everything.issubset)
        quiet(store)
    run = runs.pop()
    store.append([a_batch(run, 0)])
    assert store.news(10) == [News(run, cancel=False)]


def test_a_cancel_during_a_lost_connection_is_news_later(store: RedisStore, admin: Any) -> None:
    run, ended = a_run(store), a_run(store)
    quiet(store)
    admin.client_kill_filter(_type="pubsub")
    store.cancel(run)
    store.cancel(ended)
    store.append([a_batch(ended, 0, status="done")])
    assert news_until(store, bool) == {News(run, cancel=True)}


def test_news_outlives_a_restart(valkey: Valkey, store: RedisStore) -> None:
    store.watch("run-that-is-watched")
    quiet(store)
    valkey.restart()
    assert news_until(store, bool) == {News("run-that-is-watched", cancel=False)}


def test_waiting_for_news_of_a_frozen_server_raises_an_error(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_stream.stores.redis_news.SILENCE", 0.3)
    store = RedisStore(valkey.url, timeout=0.3)
    store.watch("run-that-is-watched")
    quiet(store)
    assert store.news(1.5) == [], "a silent server that answers a PING is not an error"
    valkey.pause()
    with pytest.raises(StoreError):
        store.news(20)
    valkey.resume()
    assert news_until(store, bool) == {News("run-that-is-watched", cancel=False)}
    store.close()


def test_watch_wakes_a_waiting_thread_and_unwatch_ends_reports(store: RedisStore) -> None:
    run = a_run(store)
    quiet(store)
    received: list[News] = []
    waiting = threading.Thread(target=lambda: received.extend(store.news(30)))
    waiting.start()
    store.watch(run)
    waiting.join(10)
    assert received == [News(run, cancel=False)]
    # After unwatch and watch in quick succession, the run is reported at least once.
    store.unwatch(run)
    store.watch(run)
    assert store.news(10) == [News(run, cancel=False)]
    store.append([a_batch(run, 0)])
    news_until(store, {News(run, cancel=False)}.issubset)
    store.unwatch(run)
    quiet(store)
    store.append([a_batch(run, 1)])
    assert store.news(0.3) == []


def test_close_ends_a_wait_for_news(valkey: Valkey) -> None:
    store = RedisStore(valkey.url)
    quiet(store)
    waiting = threading.Thread(target=store.news, args=(60,))
    waiting.start()
    store.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_two_hundred_watched_runs_need_one_connection(store: RedisStore, admin: Any) -> None:
    runs = [a_run(store) for _ in range(200)]
    before = len(admin.client_list())
    for run in runs:
        store.watch(run)
    news_until(store, {News(run, cancel=False) for run in runs}.issubset)
    assert len(admin.client_list()) <= before + 1
    assert len(admin.client_list(_type="pubsub")) == 1
    for first in range(0, 200, 50):
        assert all(store.append([a_batch(run, 0) for run in runs[first : first + 50]]))
    news_until(store, {News(run, cancel=False) for run in runs}.issubset)


# At start


def test_a_unix_socket_can_be_used(valkey: Valkey) -> None:
    store = RedisStore(valkey.unix_url)
    run = a_run(store)
    assert store.append([a_batch(run, 0, 2)]) == [True]
    store.watch(run)
    assert store.news(10) == [News(run, cancel=False)]
    store.close()


def test_two_services_share_a_server_under_two_prefixes(valkey: Valkey, store: RedisStore) -> None:
    other = RedisStore(valkey.url, prefix="other:")
    run = a_run(store)
    assert other.get(run) is None
    assert other.take_over(TOKEN, 1, 10) == []
    other.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://host:port/0", "the host or the port"),
        ("redis://host/first", "the database is not a number"),
        ("redis://host?nosuch=1", "nosuch"),
        ("redis://host?db=one", "db"),
        ("redis://:pass/w0rd@host", "percent-encode"),
        ("redis://:12/w0rd@host", "percent-encode"),
        ("redis://:12?w0rd=a@host", "percent-encode"),
        ("redis://:w0rd", "the host or the port"),
        ("redis://user:w0rd/0", "the host or the port"),
        ("redis://:12/w0rd", "the database is not a number"),
        ("redis://[w0rd]", "the host or the port"),
        ("redis://[::1", "not a Redis URL"),
    ],
)
@pytest.mark.parametrize("setting", ["STREAM_STORE", "STREAM_CHECKPOINTS"])
def test_a_bad_url_is_reported_at_start(url: str, problem: str, setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        RedisStore(url) if setting == "STREAM_STORE" else open_checkpoints(url, "")
    assert error.value.setting == setting
    assert problem in str(error.value)
    told = "".join(traceback.format_exception(error.value))
    assert "w0rd" not in told
    assert "pass/" not in told


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_a_url_may_set_timeouts_but_not_the_type_of_responses(scheme: str) -> None:
    url = f"{scheme}://host/0?decode_responses=True&protocol=3&socket_timeout=9&max_connections=3"
    pool: Any = connection_pool(url, 2.0, "STREAM_STORE")
    options = pool.connection_kwargs
    assert (options["decode_responses"], options["protocol"]) == (False, 2)
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (9, 2)
    assert (pool.max_connections, pool.timeout) == (3, 2)
    assert options.get("socket_keepalive") == (None if scheme == "unix" else True)


def test_a_url_with_decode_responses_works(valkey: Valkey) -> None:
    store = RedisStore(f"{valkey.url}?decode_responses=True")
    run = a_run(store)
    assert store.append([a_batch(run, 0)]) == [True]
    assert [event.seq for event in store.read(run, 0, 10)] == [1]
    store.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/2", "redis://host:1/2"),
        ("rediss://host?password=secret", "rediss://host"),
        ("redis://:a?secret@host", "redis://…"),
        ("redis://:secret#a@host", "redis://host"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_server_that_does_not_answer_is_reported_at_start() -> None:
    with pytest.raises(ConfigError, match=r"redis://127\.0\.0\.1:1/0, which does not answer"):
        RedisStore("redis://127.0.0.1:1/0")
    with pytest.raises(ConfigError, match=r"unix:///no/such\.sock, which does not answer"):
        RedisStore("unix:///no/such.sock")


def test_a_wrong_password_is_reported_at_start() -> None:
    with Valkey(requirepass="right") as valkey:
        for url in (valkey.url, valkey.url.replace("//", "//:wr0ng@")):
            with pytest.raises(ConfigError, match="which does not answer") as error:
                RedisStore(url)
            assert "wr0ng" not in str(error.value)


def test_an_eviction_policy_that_deletes_logs_is_reported_at_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Valkey(maxmemory="100mb", maxmemory_policy="allkeys-lru") as valkey:
        with pytest.raises(ConfigError, match=r"maxmemory-policy allkeys-lru .* noeviction"):
            RedisStore(valkey.url)
        with Redis(port=valkey.port) as admin:
            admin.config_set("maxmemory-policy", "volatile-lru")
            RedisStore(valkey.url).close()
            assert "volatile-lru, which deletes counters and claims" in caplog.text
            caplog.clear()
            admin.config_set("maxmemory-policy", "noeviction")
            RedisStore(valkey.url).close()
            assert not caplog.messages
            admin.config_set("maxmemory-policy", "allkeys-lfu")
            admin.config_set("maxmemory", 0)
        with caplog.at_level(logging.WARNING):
            RedisStore(valkey.url).close()
        assert "allkeys-lfu" in caplog.text


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"redis_version": "6.0.16"}, "which is version 6.0.16: use Redis 6.2 or later, or Valkey"),
        ({"redis_version": 5.0}, "which is version 5.0: use Redis 6.2 or later, or Valkey"),
        ({"redis_version": "6.2.0"}, None),
        ({"redis_version": 7.4}, None),
        ({"redis_version": "10.0.1"}, None),
        (
            {"redis_version": "7.2.4", "cluster_enabled": 1},
            "which is part of a cluster: use a server with cluster-enabled no",
        ),
    ],
)
def test_unsuitable_servers_are_described(info: dict[str, Any], problem: str | None) -> None:
    assert unfit(info) == problem


def test_a_server_that_refuses_info_is_accepted(
    valkey: Valkey, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    admin.execute_command(
        "ACL", "SETUSER", "app", "on", ">pw", "~flask_stream:*", "&*", "+@all", "-info"
    )
    store = RedisStore(valkey.url.replace("//", "//app:pw@"))
    assert "does not permit INFO" in caplog.text
    run = a_run(store)
    assert store.append([a_batch(run, 0)]) == [True], "and its keys all have the prefix"
    store.cancel(run)
    assert store.news(10) == [News(run, cancel=True)]
    assert store.append([a_batch(run, 1, status="cancelled")]) == [True]
    assert len(store.purge(-1, 10)) == 1
    again = new_run("ann")
    assert (
        store.create(again, TOKEN, 60, CreateConditions(max_live_runs=1, only_live_run=True))
        is None
    )
    assert len(store.conversations("ann", 10)) == len(store.runs("ann", again.conversation)) == 1
    assert store.rename_conversation("ann", again.conversation, "title")
    assert store.delete_conversation("ann", again.conversation)
    assert store.count("key", 1, 60) == store.count("key", 0, 60) == 1
    assert store.claim("key", "value", 60) == "value"
    store.release_claim("key", "value")
    store.close()


def test_without_redis_py_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['redis'] = None; import flask_stream.stores.redis"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ConfigError: STREAM_STORE" in done.stderr
    assert "pip install 'flask-llm-stream[redis]'" in done.stderr


# Under gevent

_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, threading
from flask_stream.stores.base import News
from flask_stream.stores.redis import RedisStore
from tests.test_redis import a_batch, a_run

store = RedisStore(sys.argv[1])
runs = [a_run(store) for _ in range(100)]
received, done = set(), []

def follow():
    while len(done) < 100 or len(received) < 100:
        received.update(news.run for news in store.news(1.0))

def write(run):
    store.watch(run)
    for turn in range(20):
        assert store.append([a_batch(run, 2 * turn, 2)]) == [True]
    assert [event.seq for event in store.read(run, 0, 100)] == list(range(1, 41))
    done.append(run)

threads = [threading.Thread(target=write, args=(run,)) for run in runs]
threads.append(threading.Thread(target=follow))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
info = store._redis.info("clients")
print(len(done), len(received), info["connected_clients"])
store.close()
"""


def test_a_hundred_greenlets_share_a_few_connections(valkey: Valkey) -> None:
    command = [sys.executable, "-W", "error", "-c", _GREENLETS, valkey.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    writers, received, connections = map(int, done.stdout.split())
    assert (writers, received) == (100, 100)
    assert connections <= 17
