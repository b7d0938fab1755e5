"""What every store promises, told once and asked of each: see `flask_stream.stores.base`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_stream.events import Event, encode, new_id
from flask_stream.stores.base import Batch, Held, News, Run, Store
from flask_stream.stores.memory import MemoryStore
from flask_stream.stores.redis import RedisStore
from flask_stream.stores.sqlite import SqliteStore

from .valkey import Valkey

#: Opens one more store object on the same data, as another process would.
Opener = Callable[[], Store]


def _memory(request: pytest.FixtureRequest) -> Opener:
    store = MemoryStore()  # one process: there is no other
    return lambda: store


def _sqlite(request: pytest.FixtureRequest) -> Opener:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: SqliteStore(folder / "log.db")


def _redis(request: pytest.FixtureRequest) -> Opener:
    server: Valkey = request.getfixturevalue("_server")
    prefix = f"{new_id()}:"  # whose data nobody else sees
    return lambda: RedisStore(server.url, prefix=prefix)


#: A store joins the suite here.
STORES: dict[str, Callable[[pytest.FixtureRequest], Opener]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
}

#: Seconds after which a promise that has no time limit counts as broken.
PATIENCE = 20.0


@pytest.fixture(scope="module")
def _server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(params=STORES)
def _open(request: pytest.FixtureRequest) -> Iterator[Opener]:
    opened: list[Store] = []
    opener = STORES[request.param](request)

    def again() -> Store:
        store = opener()
        if store not in opened:
            opened.append(store)
        return store

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(_open: Opener) -> Store:
    return _open()


@pytest.fixture
def other(_open: Opener, store: Store) -> Store:
    """A store on the same data, as another process has it."""
    return _open()


def new_run(**known: object) -> Run:
    run = Run(
        id=new_id(),
        chain="chat",
        conversation=new_id(),
        parent=None,
        principal="",
        input='{"question":"Why?"}',
        created=time.time(),
    )
    return replace(run, **known)  # type: ignore[arg-type]


def started(store: Store, owner: str = "me", lease: float = 60, **known: object) -> Run:
    run = new_run(**known)
    assert store.create(run, owner, lease) is None
    return run


def events(after: int, number: int, text: str = "word") -> list[Event]:
    data = encode({"content": text})
    return [Event(seq, "chunk", data) for seq in range(after + 1, after + number + 1)]


def batch(run: Run, after: int, number: int = 1, owner: str = "me", text: str = "word") -> Batch:
    return Batch(run.id, owner, after, events(after, number, text), None)


def ending(run: Run, after: int, number: int = 1, owner: str = "me") -> Batch:
    said = events(after, number - 1)
    end = Event(after + number, "end", '{"status":"done","error":null}')
    return Batch(run.id, owner, after, [*said, end], "done")


def whole(store: Store, run: Run, limit: int = 1000) -> list[Event]:
    """The log, read page by page."""
    log: list[Event] = []
    while page := store.read(run.id, len(log), limit):
        log += page
    return log


def told(store: Store, news: News) -> bool:
    """Whether the news comes."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if news in store.news(0.5):
            return True
    return False


def quiet(store: Store) -> list[News]:
    """What else there is to tell, until nothing comes for a while."""
    heard: list[News] = []
    while news := store.news(0.2):
        heard += news
    return heard


def found(store: Store, run: Run) -> Run:
    there = store.get(run.id)
    assert there is not None
    return there


def overdue(run: Run, store: Store) -> None:
    """Wait until the lease of a run, made with next to none, has run out."""
    time.sleep(0.05)
    assert found(store, run).live


# Runs


def test_a_run_is_found_as_it_was_created(store: Store, other: Store) -> None:
    run = started(store, parent=new_id(), principal="ann", input=encode({"question": "Ä\ud800?"}))
    assert store.get(run.id) == other.get(run.id) == run


def test_an_unknown_run_is_none_and_has_no_events(store: Store) -> None:
    assert store.get(new_id()) is None
    assert store.read(new_id(), 0, 10) == []
    assert not store.expired(new_id())


def test_of_fifty_who_create_a_run_one_does(store: Store, other: Store) -> None:
    run = new_run()
    barrier = threading.Barrier(50)

    def create(number: int) -> Run | None:
        barrier.wait()
        return (store, other)[number % 2].create(run, f"owner-{number}", 60)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(create, range(50)))
    assert answers.count(None) == 1
    assert answers.count(run) == 49


def test_whoever_created_a_run_may_ask_again(store: Store) -> None:
    run = started(store)
    assert store.append([batch(run, 0)]) == [True]
    assert store.create(run, "me", 60) is None
    assert store.create(run, "you", 60) == replace(run, seq=1)


# Appending


def test_events_follow_in_order(store: Store, other: Store) -> None:
    run = started(store)
    assert store.append([batch(run, 0, 3)]) == [True]
    assert store.append([batch(run, 3, 1)]) == [True]
    assert found(other, run) == replace(run, seq=4)
    assert store.append([ending(run, 4, 2)]) == [True]
    assert found(other, run) == replace(run, seq=6, status="done")
    assert [event.seq for event in whole(other, run)] == [1, 2, 3, 4, 5, 6]


def test_a_call_stores_for_many_runs(store: Store) -> None:
    runs = [started(store) for _ in range(300)]
    assert store.append([batch(run, 0, 2) for run in runs]) == [True] * 300
    assert all(found(store, run).seq == 2 for run in runs)


def test_nothing_to_store_is_no_trouble(store: Store) -> None:
    assert store.append([]) == []
    assert store.renew({}, 60) == {}


def test_a_call_may_hold_several_batches_of_a_run(store: Store) -> None:
    run = started(store)
    three = [batch(run, 0, 2), batch(run, 2, 2), ending(run, 4)]
    assert store.append(three) == [True, True, True]
    assert len(whole(store, run)) == 5


def test_a_repeated_call_stores_nothing_twice(store: Store, other: Store) -> None:
    run, ended = started(store), started(store)
    call = [batch(run, 0, 3), ending(ended, 0, 2)]
    assert store.append(call) == [True, True]
    assert store.append(call) == [True, True]
    assert other.append(call) == [True, True]
    assert [len(whole(store, each)) for each in (run, ended)] == [3, 2]
    assert store.append([batch(run, 3)]) == [True]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda run: batch(run, 3, owner="you"), id="another owner"),
        pytest.param(lambda run: batch(run, 2, 3, owner="you"), id="another owner, wrong place"),
        pytest.param(lambda run: batch(run, 4), id="a gap"),
        pytest.param(lambda run: batch(run, 2, 3), id="an overlap"),
        pytest.param(lambda run: batch(run, 0, 3, owner="you"), id="another owner's repetition"),
        pytest.param(lambda run: batch(new_run(), 0), id="no such run"),
    ],
)
def test_a_batch_that_does_not_belong_is_refused_whole(
    store: Store, wrong: Callable[[Run], Batch]
) -> None:
    run = started(store)
    store.append([batch(run, 0, 3)])
    assert store.append([wrong(run)]) == [False]
    assert whole(store, run) == events(0, 3)
    assert found(store, run) == replace(run, seq=3)


def test_nothing_follows_an_end(store: Store) -> None:
    run = started(store)
    store.append([batch(run, 0), ending(run, 1)])
    assert store.append([batch(run, 2)]) == [False]
    assert store.append([ending(run, 2)]) == [False]
    assert found(store, run) == replace(run, seq=2, status="done")


def test_a_refused_batch_keeps_no_other_from_being_stored(store: Store) -> None:
    runs = [started(store) for _ in range(5)]
    call = [batch(run, 0, 2) for run in runs]
    call[1] = batch(runs[1], 7)
    call[3] = ending(runs[3], 0, owner="you")
    assert store.append(call) == [True, False, True, False, True]
    assert [found(store, run).seq for run in runs] == [2, 0, 2, 0, 2]
    assert all(found(store, run).live for run in runs)


# Reading


def test_a_log_is_read_from_any_place_without_a_gap(store: Store, other: Store) -> None:
    run = started(store)
    log: list[Event] = []
    for number in (1, 2, 7, 1, 1, 3, 20):
        said = events(len(log), number, text=f"batch of {number}")
        assert store.append([Batch(run.id, "me", len(log), said, None)]) == [True]
        log += said
    for after in range(len(log) + 2):
        for limit in (1, 2, 3, 5, 8, 13, 34, 1000):
            read = other.read(run.id, after, limit)
            assert read == log[after : after + len(read)]
            assert len(read) >= min(1, len(log) - after)
            assert len(read) >= min(limit, len(log) - after)
    assert whole(other, run, limit=4) == log


def test_a_big_batch_is_read_page_by_page(store: Store) -> None:
    run = started(store)
    assert store.append([batch(run, 0, 10_000, text="x" * 100)]) == [True]
    assert store.append([batch(run, 10_000, 1)]) == [True]
    assert [event.seq for event in whole(store, run)] == list(range(1, 10_002))
    assert store.read(run.id, 9_999, 10)[0].seq == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ä€😀",
        "a\u2028b\u2029c\u0085d",
        "\r\n\t\v\f\0",
        "\"'\\\\n\\",
        "\ud800 \udfff",
        "%s {} ?1",
    ],
)
def test_data_comes_back_to_the_letter(store: Store, other: Store, text: str) -> None:
    run = started(store)
    said = events(0, 2, text)
    assert store.append([Batch(run.id, "me", 0, said, None)]) == [True]
    assert other.read(run.id, 0, 10) == said
    assert other.read(run.id, 1, 10)[0].value() == {"content": text}


# Owners


def test_a_lease_is_renewed_by_its_owner_alone(store: Store, other: Store) -> None:
    run, ended = started(store), started(store)
    store.append([ending(ended, 0)])
    unknown = new_id()
    answers = store.renew({run.id: "me", ended.id: "me", unknown: "me"}, 60)
    assert answers == {run.id: Held.YES, ended.id: Held.LOST, unknown: Held.LOST}
    assert other.renew({run.id: "you"}, 60) == {run.id: Held.LOST}


def test_a_renewed_lease_keeps_the_run(store: Store, other: Store) -> None:
    run = started(store, lease=0.001)
    assert store.renew({run.id: "me"}, 60) == {run.id: Held.YES}
    overdue(run, store)
    assert other.adopt("you", 60, 10) == []


def test_a_cancelled_run_says_so_when_it_is_renewed(store: Store, other: Store) -> None:
    run = started(store)
    other.cancel(run.id)
    other.cancel(run.id)
    assert store.renew({run.id: "me"}, 60) == {run.id: Held.CANCEL}
    assert found(store, run).live
    assert store.append([batch(run, 0)]) == [True]


def test_to_cancel_what_is_over_or_unknown_does_nothing(store: Store) -> None:
    run = started(store)
    store.append([ending(run, 0)])
    store.cancel(run.id)
    store.cancel(new_id())
    assert found(store, run) == replace(run, seq=1, status="done")


def test_only_runs_whose_lease_ran_out_are_adopted(store: Store, other: Store) -> None:
    lost, ended = started(store, lease=0.001), started(store, lease=0.001)
    started(store, lease=60)
    store.append([batch(lost, 0, 2), ending(ended, 0)])
    overdue(lost, store)
    assert other.adopt("you", 60, 10) == [replace(lost, seq=2, attempt=2)]
    assert found(store, lost).attempt == 2
    assert store.adopt("me", 60, 10) == []


def test_no_more_runs_are_adopted_than_asked_for(store: Store) -> None:
    runs = [started(store, lease=0.001) for _ in range(5)]
    overdue(runs[-1], store)
    first, second = store.adopt("you", 60, 3), store.adopt("you", 60, 3)
    assert (len(first), len(second)) == (3, 2)
    assert {run.id for run in first + second} == {run.id for run in runs}


def test_each_lost_run_is_adopted_by_one_of_many(store: Store, other: Store) -> None:
    runs = [started(store, lease=0.001) for _ in range(40)]
    overdue(runs[-1], store)
    barrier = threading.Barrier(8)

    def adopt(number: int) -> list[str]:
        barrier.wait()
        adopted: list[str] = []
        for _ in range(10):
            more = (store, other)[number % 2].adopt(f"owner-{number}", 60, 7)
            adopted += [run.id for run in more]
        return adopted

    with ThreadPoolExecutor(8) as pool:
        adopted = [run for runs in pool.map(adopt, range(8)) for run in runs]
    assert sorted(adopted) == sorted(run.id for run in runs)
    assert {found(store, run).attempt for run in runs} == {2}


def test_an_adopted_run_refuses_its_old_owner(store: Store, other: Store) -> None:
    run = started(store, lease=0.001)
    store.append([batch(run, 0, 2)])
    overdue(run, store)
    assert len(other.adopt("you", 60, 1)) == 1
    assert store.renew({run.id: "me"}, 60) == {run.id: Held.LOST}
    assert store.append([batch(run, 2)]) == [False]
    assert store.append([batch(run, 0, 2)]) == [False]  # not even what it has stored already
    assert other.append([ending(run, 2, owner="you")]) == [True]
    assert len(whole(store, run)) == 3


# Age


def test_old_runs_go_whole_and_only_when_they_are_over(store: Store, other: Store) -> None:
    now = time.time()
    old, young = started(store, created=now - 100), started(store, created=now - 10)
    live = started(store, created=now - 100)
    store.append([ending(old, 0, 5), ending(young, 0), batch(live, 0)])
    assert other.purge(50, 10) == 1
    assert other.purge(50, 10) == 0
    assert store.get(old.id) is None
    assert store.read(old.id, 0, 10) == []
    assert store.append([batch(old, 5)]) == [False]
    assert found(store, young).seq == found(store, live).seq == 1
    # Expired is something else than unknown, and than there.
    assert store.expired(old.id)
    assert not any(store.expired(run) for run in (young.id, live.id, new_id()))


def test_no_more_runs_are_removed_than_asked_for(store: Store) -> None:
    runs = [started(store, created=time.time() - 100) for _ in range(5)]
    store.append([ending(run, 0) for run in runs])
    assert [store.purge(50, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert all(store.expired(run.id) for run in runs)


# News


def test_a_watched_run_is_news_even_if_nothing_happens(store: Store) -> None:
    run = started(store)
    store.watch(run.id)
    assert told(store, News(run.id, cancel=False))
    store.watch(run.id)
    assert told(store, News(run.id, cancel=False))


def test_each_append_of_another_is_news(store: Store, other: Store) -> None:
    run = started(other)
    store.watch(run.id)
    assert told(store, News(run.id, cancel=False))
    quiet(store)
    for after in range(3):
        other.append([batch(run, after)])
        assert told(store, News(run.id, cancel=False))
        assert len(store.read(run.id, 0, 10)) == after + 1
    other.append([ending(run, 3)])
    assert told(store, News(run.id, cancel=False))


def test_news_wakes_who_waits_for_it(store: Store, other: Store) -> None:
    run = started(other)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(told, store, News(run.id, cancel=False))
        time.sleep(0.05)
        store.watch(run.id)
        assert waiting.result(PATIENCE)
        quiet(store)
        waiting = pool.submit(told, store, News(run.id, cancel=False))
        other.append([batch(run, 0)])
        assert waiting.result(PATIENCE)


def test_nothing_is_told_of_what_nobody_watches(store: Store, other: Store) -> None:
    watched, never = started(other), started(other)
    store.watch(watched.id)
    other.append([batch(watched, 0), batch(never, 0)])
    heard = {news.run for news in quiet(store)}
    other.append([batch(watched, 1), batch(never, 1)])
    assert told(store, News(watched.id, cancel=False))
    heard |= {news.run for news in quiet(store)}
    assert heard <= {watched.id}


def test_what_is_no_longer_watched_is_forgotten(store: Store, other: Store) -> None:
    run = started(other)
    store.watch(run.id)
    assert told(store, News(run.id, cancel=False))
    store.unwatch(run.id)
    store.unwatch(new_id())
    until = time.monotonic() + PATIENCE
    for after in count():  # soon; what was under way may still come
        quiet(store)
        other.append([batch(run, after)])
        if not quiet(store):
            break
        assert time.monotonic() < until


def test_the_owner_hears_of_a_cancel(store: Store, other: Store) -> None:
    mine, cancelled = started(store), started(store)
    other.cancel(cancelled.id)
    assert told(store, News(cancelled.id, cancel=True))
    assert not any(news.cancel for news in quiet(store))
    store.cancel(mine.id)
    assert told(store, News(mine.id, cancel=True))


def test_whoever_adopted_a_run_hears_of_a_cancel(store: Store, other: Store) -> None:
    run = started(other, lease=0.001)
    overdue(run, other)
    assert len(store.adopt("me", 60, 1)) == 1
    other.cancel(run.id)
    assert told(store, News(run.id, cancel=True))


def test_waiting_for_news_ends(store: Store) -> None:
    assert store.news(0) == []
    started(store)
    assert store.news(0.05) == []
    assert store.news(0) == []


# Anything, in any order


_WRITES = st.tuples(
    st.sampled_from([0, 1]),  # which of two runs
    st.sampled_from(["next", "next", "end", "again", "foreign", "gap", "overlap"]),
    st.integers(1, 5),
    st.text(max_size=10),
)
_CALLS = st.lists(
    st.one_of(
        st.lists(_WRITES, min_size=1, max_size=4),
        st.tuples(st.sampled_from([0, 1]), st.integers(0, 30), st.integers(1, 20)),
    ),
    max_size=25,
)


class Model:
    """What a run's log should be, in the plainest words."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.log: list[Event] = []
        self.over = False
        self.latest: Batch | None = None

    def write(self, how: str, number: int, text: str) -> tuple[Batch, bool]:
        """A batch, and whether it is to be stored."""
        end = len(self.log)
        if how == "again" and self.latest:
            return self.latest, True
        if how == "foreign":
            return batch(self.run, end, number, "you", text), False
        if how == "gap" or (how == "overlap" and not end):
            return batch(self.run, end + 1, number, text=text), False
        if how == "overlap":
            return batch(self.run, end - 1, number + 1, text=text), False
        new = ending(self.run, end, number) if how == "end" else batch(self.run, end, number)
        if self.over:
            return new, False
        self.log += new.events
        self.over = new.status is not None
        self.latest = new
        return new, True


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(calls=_CALLS)
def test_a_log_is_what_was_stored_whatever_else_was_tried(
    store: Store,
    other: Store,
    calls: list[list[tuple[int, str, int, str]] | tuple[int, int, int]],
) -> None:
    models = [Model(started(store)) for _ in range(2)]
    turn = count()
    for call in calls:
        writer = (store, other)[next(turn) % 2]
        if isinstance(call, tuple):
            which, after, limit = call
            rest = models[which].log[after:]
            read = writer.read(models[which].run.id, after, limit)
            assert read == rest[: len(read)]
            assert bool(read) == bool(rest)
        else:
            wanted = [models[which].write(how, n, text) for which, how, n, text in call]
            assert writer.append([batch for batch, _ in wanted]) == [done for _, done in wanted]
    for model in models:
        assert whole(other, model.run, limit=3) == model.log
        assert found(other, model.run).live is not model.over
