"""The contract of stores, tested with every store: see `flask_stream.stores.base`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_stream.events import Event, encode, new_id
from flask_stream.stores.base import (
    Batch,
    Conversation,
    ConversationBusy,
    CreateRefused,
    LeaseState,
    News,
    Run,
    Store,
    TooManyLiveRuns,
)
from flask_stream.stores.base import CreateConditions as Conditions
from flask_stream.stores.memory import MemoryStore
from flask_stream.stores.redis import RedisStore
from flask_stream.stores.sqlite import SqliteStore

from .valkey import Valkey

#: Opens one more store object on the same data, as another process would.
Opener = Callable[[], Store]


def _memory(request: pytest.FixtureRequest) -> Opener:
    store = MemoryStore()  # it exists in one process only
    return lambda: store


def _sqlite(request: pytest.FixtureRequest) -> Opener:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: SqliteStore(folder / "log.db")


def _redis(request: pytest.FixtureRequest) -> Opener:
    server: Valkey = request.getfixturevalue("_server")
    prefix = f"{new_id()}:"  # keeps the data of tests apart
    return lambda: RedisStore(server.url, prefix=prefix)


#: The stores to test. Add a new one here.
STORES: dict[str, Callable[[pytest.FixtureRequest], Opener]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
}

#: Seconds to wait for something that has no time limit of its own.
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
    """A second store on the same data, as another process would have."""
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


def started(
    store: Store,
    lease_token: str = "me",
    lease: float = 60,
    conditions: Conditions = Conditions(),  # noqa: B008 - it cannot be changed
    **known: object,
) -> Run:
    run = new_run(**known)
    assert store.create(run, lease_token, lease, conditions) is None
    return run


def over(store: Store, run: Run, after: int = 0, lease_token: str = "me") -> None:
    assert store.append([ending(run, after, lease_token=lease_token)]) == [True]


def together(number: int, call: Callable[[int], object]) -> list[object]:
    """Call from several threads at once; return the results, or the CreateRefused they raise."""
    barrier = threading.Barrier(number)

    def one(which: int) -> object:
        barrier.wait()
        try:
            return call(which)
        except CreateRefused as refused:
            return refused

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def settled(what: Callable[[], object], wanted: object) -> None:
    """Wait until a call returns the wanted value."""
    until = time.monotonic() + PATIENCE
    while what() != wanted:
        assert time.monotonic() < until, what()
        time.sleep(0.02)


def events(after: int, number: int, text: str = "word") -> list[Event]:
    data = encode({"content": text})
    return [Event(seq, "chunk", data) for seq in range(after + 1, after + number + 1)]


def batch(
    run: Run, after: int, number: int = 1, lease_token: str = "me", text: str = "word"
) -> Batch:
    return Batch(run.id, lease_token, after, events(after, number, text), None)


def ending(run: Run, after: int, number: int = 1, lease_token: str = "me") -> Batch:
    said = events(after, number - 1)
    end = Event(after + number, "end", '{"status":"done","finish_reason":"stop","error":null}')
    return Batch(run.id, lease_token, after, [*said, end], "done")


def whole(store: Store, run: Run, limit: int = 1000) -> list[Event]:
    """Read a log page by page."""
    log: list[Event] = []
    while page := store.read(run.id, len(log), limit):
        log += page
    return log


def reported(store: Store, news: News) -> bool:
    """Return whether the store reports this news in time."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if news in store.news(0.5):
            return True
    return False


def quiet(store: Store) -> list[News]:
    """Return all news that is left, until none has come for a while."""
    received: list[News] = []
    while news := store.news(0.2):
        received += news
    return received


def found(store: Store, run: Run) -> Run:
    stored = store.get(run.id)
    assert stored is not None
    return stored


def overdue(run: Run, store: Store) -> None:
    """Wait until the very short lease of a run has expired."""
    time.sleep(0.05)
    assert found(store, run).live


# Runs


def test_a_run_is_found_as_it_was_created(store: Store, other: Store) -> None:
    run = started(store, parent=new_id(), principal="ann", input=encode({"question": "Ä\ud800?"}))
    assert store.get(run.id) == other.get(run.id) == run


def test_an_unknown_run_is_none_and_has_no_events(store: Store) -> None:
    assert store.get(new_id()) is None
    assert store.read(new_id(), 0, 10) == []
    assert store.expired_principal(new_id()) is None


def test_only_one_of_fifty_callers_creates_a_run(store: Store, other: Store) -> None:
    run = new_run()
    barrier = threading.Barrier(50)

    def create(number: int) -> Run | None:
        barrier.wait()
        return (store, other)[number % 2].create(run, f"lease_token-{number}", 60)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(create, range(50)))
    assert answers.count(None) == 1
    assert answers.count(run) == 49


def test_the_creator_of_a_run_may_repeat_the_call(store: Store) -> None:
    run = started(store)
    assert store.append([batch(run, 0)]) == [True]
    assert store.create(run, "me", 60) is None
    assert store.create(run, "you", 60) == replace(run, seq=1)


# Conditions


def test_a_principal_has_a_limit_of_live_runs(store: Store, other: Store) -> None:
    conditions = Conditions(max_live_runs=2)
    first = started(store, conditions=conditions, principal="ann")
    second = started(other, conditions=conditions, principal="ann")
    third = new_run(principal="ann")
    for each in (store, other):
        with pytest.raises(TooManyLiveRuns):
            each.create(third, "me", 60, conditions)
    assert store.get(third.id) is None
    assert store.conversation("ann", third.conversation) is None
    assert other.append([batch(third, 0)]) == [False]
    started(store, conditions=conditions, principal="bob")  # another principal
    over(other, first)
    assert store.create(third, "me", 60, conditions) is None
    with pytest.raises(TooManyLiveRuns):
        store.create(new_run(principal="ann"), "me", 60, conditions)
    assert store.create(new_run(principal="ann"), "me", 60, Conditions(max_live_runs=4)) is None
    assert store.create(new_run(principal="ann"), "me", 60) is None
    over(store, second)


def test_the_end_of_a_run_frees_its_slot_however_it_is_stored(store: Store) -> None:
    runs = [started(store, principal="ann") for _ in range(3)]
    store.append([batch(runs[0], 0, 2), ending(runs[0], 2)])
    store.append([ending(run, 0) for run in runs[1:]])
    store.append([ending(run, 0) for run in runs[1:]])  # already stored
    alone = Conditions(max_live_runs=1)
    assert store.create(new_run(principal="ann"), "me", 60, alone) is None
    with pytest.raises(TooManyLiveRuns):
        store.create(new_run(principal="ann"), "me", 60, alone)


def test_three_of_twenty_concurrent_starts_are_admitted(store: Store, other: Store) -> None:
    conditions = Conditions(max_live_runs=3)
    runs = [new_run(principal="ann") for _ in range(20)]
    answers = together(
        20, lambda which: (store, other)[which % 2].create(runs[which], "me", 60, conditions)
    )
    assert answers.count(None) == 3
    assert len([answer for answer in answers if isinstance(answer, TooManyLiveRuns)]) == 17
    assert len([run for run in runs if store.get(run.id)]) == 3
    assert len(store.conversations("ann", 100)) == 3


def test_a_run_may_have_to_be_the_only_live_one_of_its_conversation(
    store: Store, other: Store
) -> None:
    alone = Conditions(only_live_run=True)
    first = started(store, conditions=alone, principal="ann")
    again = new_run(principal="ann", conversation=first.conversation)
    with pytest.raises(ConversationBusy) as busy:
        other.create(again, "me", 60, alone)
    assert busy.value.run == first.id
    assert store.get(again.id) is None
    # The same id of another principal is another conversation.
    started(other, conditions=alone, principal="bob", conversation=first.conversation)
    started(other, conditions=alone, principal="ann")
    over(store, first)
    assert other.create(again, "me", 60, alone) is None
    assert other.create(replace(again, id=new_id()), "me", 60) is None  # without this condition
    with pytest.raises(ConversationBusy) as busy:
        store.create(replace(again, id=new_id()), "me", 60, alone)
    assert busy.value.run != first.id


def test_one_of_two_concurrent_runs_is_the_only_live_one(store: Store, other: Store) -> None:
    for _ in range(20):
        runs = [new_run(principal="ann")]
        runs.append(replace(runs[0], id=new_id()))
        answers = together(
            2,
            lambda which, runs=runs: (store, other)[which].create(  # type: ignore[misc]
                runs[which], "me", 60, Conditions(only_live_run=True)
            ),
        )
        (refused,) = (answer for answer in answers if answer is not None)
        assert isinstance(refused, ConversationBusy)
        assert refused.run == runs[answers.index(None)].id


def test_conversation_busy_is_raised_before_too_many_live_runs(store: Store) -> None:
    conditions = Conditions(max_live_runs=1, only_live_run=True)
    run = started(store, conditions=conditions, principal="ann")
    with pytest.raises(ConversationBusy):
        store.create(replace(run, id=new_id()), "me", 60, conditions)
    with pytest.raises(TooManyLiveRuns):
        store.create(new_run(principal="ann"), "me", 60, conditions)


def test_an_existing_run_is_returned_whatever_the_conditions(store: Store, other: Store) -> None:
    conditions = Conditions(max_live_runs=1, only_live_run=True)
    run = started(store, conditions=conditions, principal="ann")
    assert other.create(run, "you", 60, conditions) == run
    assert other.create(run, "me", 60, conditions) is None
    over(store, run)
    started(store, conditions=conditions, principal="ann", conversation=run.conversation)
    assert store.create(run, "you", 60, conditions) == replace(run, seq=1, status="done", ended=0)
    assert store.create(run, "me", 60, conditions) is None


def test_concurrent_calls_with_one_id_do_not_raise_conversation_busy(
    store: Store, other: Store
) -> None:
    run = new_run(principal="ann")
    answers = together(
        20,
        lambda which: (store, other)[which % 2].create(
            run, f"lease_token-{which}", 60, Conditions(max_live_runs=1, only_live_run=True)
        ),
    )
    assert answers.count(None) == 1
    assert answers.count(run) == 19


def test_a_run_whose_worker_died_counts_until_it_is_ended(store: Store, other: Store) -> None:
    conditions = Conditions(max_live_runs=1, only_live_run=True)
    run = started(store, lease=0.001, conditions=conditions, principal="ann")
    overdue(run, store)
    next = new_run(principal="ann", conversation=run.conversation)
    with pytest.raises(ConversationBusy):
        other.create(next, "me", 60, conditions)
    assert [each.id for each in other.take_over("you", 60, 10)] == [run.id]
    with pytest.raises(ConversationBusy):
        other.create(next, "me", 60, conditions)
    over(other, run, lease_token="you")
    assert other.create(next, "me", 60, conditions) is None


# Appending


def test_events_follow_in_order(store: Store, other: Store) -> None:
    run = started(store)
    assert store.append([batch(run, 0, 3)]) == [True]
    assert store.append([batch(run, 3, 1)]) == [True]
    assert found(other, run) == replace(run, seq=4)
    assert store.append([ending(run, 4, 2)]) == [True]
    assert found(other, run) == replace(run, seq=6, status="done", ended=0)
    assert [event.seq for event in whole(other, run)] == [1, 2, 3, 4, 5, 6]


def test_a_call_stores_for_many_runs(store: Store) -> None:
    runs = [started(store) for _ in range(300)]
    assert store.append([batch(run, 0, 2) for run in runs]) == [True] * 300
    assert all(found(store, run).seq == 2 for run in runs)


def test_an_empty_call_stores_nothing(store: Store) -> None:
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
        pytest.param(lambda run: batch(run, 3, lease_token="you"), id="another token"),
        pytest.param(
            lambda run: batch(run, 2, 3, lease_token="you"), id="another token, wrong place"
        ),
        pytest.param(lambda run: batch(run, 4), id="a gap"),
        pytest.param(lambda run: batch(run, 2, 3), id="an overlap"),
        pytest.param(
            lambda run: batch(run, 0, 3, lease_token="you"), id="another token's repetition"
        ),
        pytest.param(lambda run: batch(new_run(), 0), id="no such run"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_as_a_whole(
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
    assert found(store, run) == replace(run, seq=2, status="done", ended=0)


def test_other_batches_are_stored_beside_a_refused_one(store: Store) -> None:
    runs = [started(store) for _ in range(5)]
    call = [batch(run, 0, 2) for run in runs]
    call[1] = batch(runs[1], 7)
    call[3] = ending(runs[3], 0, lease_token="you")
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
def test_data_is_returned_unchanged(store: Store, other: Store, text: str) -> None:
    run = started(store)
    said = events(0, 2, text)
    assert store.append([Batch(run.id, "me", 0, said, None)]) == [True]
    assert other.read(run.id, 0, 10) == said
    assert other.read(run.id, 1, 10)[0].value() == {"content": text}


# Times and answers


def test_the_times_of_events_are_kept(store: Store, other: Store) -> None:
    run = started(store)
    times = [0, 0, 7, 1234, 1233, 10**9]
    log = [Event(seq, "chunk", '{"n":1}', at) for seq, at in enumerate(times, 1)]
    assert store.append([Batch(run.id, "me", 0, log[:2], None)]) == [True]
    assert store.append([Batch(run.id, "me", 2, log[2:], None)]) == [True]
    assert whole(other, run) == log
    assert other.read(run.id, 3, 1)[0].at == 1234


def test_a_batch_with_other_times_is_another_batch(store: Store) -> None:
    run = started(store)
    said = Batch(run.id, "me", 0, [Event(1, "chunk", "{}", 5)], None)
    assert store.append([said, said]) == [True, True]
    assert store.append([said._replace(events=[Event(1, "chunk", "{}", 6)])]) == [False]


def test_a_run_remembers_when_it_began_and_ended_and_what_it_answered(
    store: Store, other: Store
) -> None:
    run = started(store)
    said = [Event(seq, "chunk", "{}", 10 * seq) for seq in range(1, 5)]
    assert store.append([Batch(run.id, "me", 0, said[:1])]) == [True]
    assert found(other, run) == replace(run, seq=1)
    assert store.append([Batch(run.id, "me", 1, said[1:2], started=15)]) == [True]
    assert found(other, run) == replace(run, seq=2, started=15)
    assert store.append([Batch(run.id, "me", 2, said[2:3], first_chunk=30)]) == [True]
    assert found(other, run) == replace(run, seq=3, started=15, first_chunk=30)
    end = Batch(run.id, "me", 3, said[3:], "done", answer='"a \\ud800 \\n\\t\\u0000"')
    assert store.append([end, end]) == [True, True]
    wanted = replace(run, seq=4, started=15, first_chunk=30, ended=40, status="done")
    wanted = replace(wanted, answer=end.answer)
    assert found(other, run) == wanted
    assert other.runs(run.principal, run.conversation) == [wanted]
    assert other.newest(run.principal, run.conversation) == wanted
    assert other.branch(run.id, 9) == [wanted]
    assert other.create(run, "you", 60) == wanted


def test_one_batch_may_contain_all_of_it(store: Store) -> None:
    runs = [started(store) for _ in range(3)]
    ends = [
        ending(run, 0)._replace(started=n, first_chunk=n + 1, answer=f'"{n}"')
        for n, run in enumerate(runs)
    ]
    ends[1] = ends[1]._replace(answer=None)
    assert store.append(ends) == [True] * 3
    known = [(run.started, run.first_chunk, run.answer) for run in map(store.get, ids(runs)) if run]
    assert known == [(0, 1, '"0"'), (1, 2, None), (2, 3, '"2"')]


def ids(runs: list[Run]) -> list[str]:
    return [run.id for run in runs]


def test_a_run_that_is_taken_over_keeps_its_times(store: Store, other: Store) -> None:
    run = started(store, lease=0.001)
    assert store.append([batch(run, 0)._replace(started=3, first_chunk=4)]) == [True]
    overdue(run, store)
    (taken,) = other.take_over("you", 60, 1)
    assert taken == replace(run, seq=1, attempt=2, started=3, first_chunk=4)
    assert other.append([ending(run, 1, lease_token="you")]) == [True]
    ended = replace(taken, seq=2, status="done", ended=0)
    assert found(store, run) == ended


# Branches


def test_a_branch_is_a_run_and_its_ancestors(store: Store, other: Store) -> None:
    line: list[Run] = []
    for _ in range(8):
        line.insert(0, started(store, parent=line[0].id if line else None))
    started(store, parent=line[2].id)  # on another branch
    assert other.branch(line[0].id, 100) == line
    assert other.branch(line[0].id, 3) == line[:3]
    assert other.branch(line[5].id, 3) == line[5:]
    assert other.branch(new_id(), 3) == []


def test_a_branch_ends_before_a_missing_run(store: Store) -> None:
    now = time.time()
    oldest, old = (started(store, created=now - age) for age in (200, 100))
    young = started(store, parent=old.id)
    over(store, oldest)
    over(store, old)
    assert len(store.purge(50, 10)) == 2
    assert store.branch(young.id, 10) == [young]


def test_the_newest_run_of_a_conversation_is_the_last_of_its_runs(
    store: Store, other: Store
) -> None:
    known: dict[str, Any] = {"principal": "ann", "conversation": new_id()}
    assert store.newest("ann", known["conversation"]) is None
    for created in (1000.5, 2000.25, 1500.0, 2000.25, 3.0):
        started(store, created=created, **known)
        assert (
            other.newest("ann", known["conversation"])
            == store.runs("ann", known["conversation"])[-1]
        )
    assert store.newest("bob", known["conversation"]) is None


# Leases


def test_only_the_lease_token_renews_a_lease(store: Store, other: Store) -> None:
    run, ended = started(store), started(store)
    store.append([ending(ended, 0)])
    unknown = new_id()
    answers = store.renew({run.id: "me", ended.id: "me", unknown: "me"}, 60)
    assert answers == {run.id: LeaseState.YES, ended.id: LeaseState.LOST, unknown: LeaseState.LOST}
    assert other.renew({run.id: "you"}, 60) == {run.id: LeaseState.LOST}


def test_a_renewed_lease_keeps_the_run(store: Store, other: Store) -> None:
    run = started(store, lease=0.001)
    assert store.renew({run.id: "me"}, 60) == {run.id: LeaseState.YES}
    overdue(run, store)
    assert other.take_over("you", 60, 10) == []


def test_renewing_the_lease_of_a_cancelled_run_returns_cancel(store: Store, other: Store) -> None:
    run = started(store)
    other.cancel(run.id)
    other.cancel(run.id)
    assert store.renew({run.id: "me"}, 60) == {run.id: LeaseState.CANCEL}
    assert found(store, run).live
    assert store.append([batch(run, 0)]) == [True]


def test_cancelling_an_ended_or_unknown_run_does_nothing(store: Store) -> None:
    run = started(store)
    store.append([ending(run, 0)])
    store.cancel(run.id)
    store.cancel(new_id())
    assert found(store, run) == replace(run, seq=1, status="done", ended=0)


def test_only_runs_with_an_expired_lease_are_taken_over(store: Store, other: Store) -> None:
    lost, ended = started(store, lease=0.001), started(store, lease=0.001)
    started(store, lease=60)
    store.append([batch(lost, 0, 2), ending(ended, 0)])
    overdue(lost, store)
    assert other.take_over("you", 60, 10) == [replace(lost, seq=2, attempt=2)]
    assert found(store, lost).attempt == 2
    assert store.take_over("me", 60, 10) == []


def test_take_over_returns_at_most_limit_runs(store: Store) -> None:
    runs = [started(store, lease=0.001) for _ in range(5)]
    overdue(runs[-1], store)
    first, second = store.take_over("you", 60, 3), store.take_over("you", 60, 3)
    assert (len(first), len(second)) == (3, 2)
    assert {run.id for run in first + second} == {run.id for run in runs}


def test_concurrent_calls_take_over_each_run_once(store: Store, other: Store) -> None:
    runs = [started(store, lease=0.001) for _ in range(40)]
    overdue(runs[-1], store)
    barrier = threading.Barrier(8)

    def take_over(number: int) -> list[str]:
        barrier.wait()
        taken: list[str] = []
        for _ in range(10):
            more = (store, other)[number % 2].take_over(f"lease_token-{number}", 60, 7)
            taken += [run.id for run in more]
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [run for runs in pool.map(take_over, range(8)) for run in runs]
    assert sorted(taken) == sorted(run.id for run in runs)
    assert {found(store, run).attempt for run in runs} == {2}


def test_a_run_that_was_taken_over_refuses_the_old_lease_token(store: Store, other: Store) -> None:
    run = started(store, lease=0.001)
    store.append([batch(run, 0, 2)])
    overdue(run, store)
    assert len(other.take_over("you", 60, 1)) == 1
    assert store.renew({run.id: "me"}, 60) == {run.id: LeaseState.LOST}
    assert store.append([batch(run, 2)]) == [False]
    assert store.append([batch(run, 0, 2)]) == [
        False
    ]  # not even a batch that it has already stored
    assert other.append([ending(run, 2, lease_token="you")]) == [True]
    assert len(whole(store, run)) == 3


# Purging


def test_only_ended_runs_are_purged_and_completely(store: Store, other: Store) -> None:
    now = time.time()
    old, young = started(store, created=now - 100), started(store, created=now - 10)
    live = started(store, created=now - 100)
    store.append([ending(old, 0, 5), ending(young, 0), batch(live, 0)])
    assert len(other.purge(50, 10)) == 1
    assert len(other.purge(50, 10)) == 0
    assert store.get(old.id) is None
    assert store.read(old.id, 0, 10) == []
    assert store.append([batch(old, 5)]) == [False]
    assert found(store, young).seq == found(store, live).seq == 1
    # An expired run differs from an unknown one and from an existing one.
    assert store.expired_principal(old.id) == ""
    assert {store.expired_principal(run) for run in (young.id, live.id, new_id())} == {None}


def test_purge_removes_at_most_limit_runs(store: Store) -> None:
    runs = [started(store, created=time.time() - 100) for _ in range(5)]
    store.append([ending(run, 0) for run in runs])
    assert [len(store.purge(50, 2)) for _ in range(4)] == [2, 2, 1, 0]
    assert {store.expired_principal(run.id) for run in runs} == {""}


# Conversations


def test_a_conversation_begins_with_its_first_run(store: Store, other: Store) -> None:
    run = started(
        store, conditions=Conditions(title="Ä 😀\0 title"), principal="ann", created=1000.25
    )
    wanted = Conversation(run.conversation, "ann", "Ä 😀\0 title", 1000.25, 1000.25)
    for each in (store, other):
        assert each.conversation("ann", run.conversation) == wanted
        assert each.conversations("ann", 10) == [wanted]
        assert each.runs("ann", run.conversation) == [run]


def test_an_unknown_conversation_is_none_and_has_no_runs(store: Store) -> None:
    started(store, principal="ann")
    unknown = new_id()
    assert store.conversation("ann", unknown) is None
    assert store.runs("ann", unknown) == []
    assert store.rename_conversation("ann", unknown, "Title") is False
    assert store.delete_conversation("ann", unknown) is False
    assert store.conversations("bob", 10) == []
    assert store.conversation("ann", unknown) is None


def test_each_run_moves_its_conversation_and_leaves_its_title(store: Store, other: Store) -> None:
    first = started(store, conditions=Conditions(title="first"), principal="ann", created=1000.1)
    elsewhere = started(
        store, conditions=Conditions(title="elsewhere"), principal="ann", created=1001
    )
    assert [each.title for each in store.conversations("ann", 10)] == ["elsewhere", "first"]
    known: dict[str, Any] = {"principal": "ann", "conversation": first.conversation}
    second = started(other, conditions=Conditions(title="second"), created=1002.123456, **known)
    wanted = Conversation(first.conversation, "ann", "first", 1000.1, 1002.123456)
    assert store.conversation("ann", first.conversation) == wanted
    assert [each.title for each in store.conversations("ann", 10)] == ["first", "elsewhere"]
    # A slow clock, an end or a repeated call does not move `updated` back.
    third = started(other, conditions=Conditions(title="third"), created=1001.5, **known)
    over(store, first)
    assert store.create(second, "me", 60, Conditions(title="again")) is None
    assert store.conversation("ann", first.conversation) == wanted
    ended = replace(first, seq=1, status="done", ended=0)
    assert other.runs("ann", first.conversation) == [ended, third, second]
    assert store.runs("ann", elsewhere.conversation) == [elsewhere]


def test_runs_of_the_same_moment_come_by_id(store: Store) -> None:
    conversation = new_id()
    runs = [started(store, conversation=conversation, created=1000.5) for _ in range(20)]
    assert store.runs("", conversation) == sorted(runs, key=lambda run: run.id)


def test_one_id_of_two_principals_is_two_conversations(store: Store) -> None:
    ids: dict[str, Any] = {"conversation": new_id(), "created": 1000.0}
    anns = started(store, conditions=Conditions(title="ann's"), principal="ann", **ids)
    bobs = started(store, conditions=Conditions(title="bob's"), principal="bob", **ids)
    nobodys = started(store, conditions=Conditions(title="nobody's"), principal="", **ids)
    id = anns.conversation
    wanted = {"ann": "ann's", "bob": "bob's", "": "nobody's"}
    for principal, title in wanted.items():
        assert store.conversations(principal, 10) == [
            Conversation(id, principal, title, 1000, 1000)
        ]
    assert store.rename_conversation("bob", id, "Bob's own")
    assert store.delete_conversation("ann", id)
    assert store.get(anns.id) is None
    assert store.conversation("ann", id) is None
    assert store.runs("bob", id) == [bobs]
    assert store.runs("", id) == [nobodys]
    assert [each.title for each in store.conversations("bob", 10)] == ["Bob's own"]


@pytest.mark.parametrize("principal", ["user:a:b", "a b\n\t", "Ä😀", "*[a]?", "%s'\"--", "x\0y"])
def test_a_principal_is_any_text(store: Store, principal: str) -> None:
    started(store, principal="user:a")
    run = started(
        store, conditions=Conditions(max_live_runs=1, only_live_run=True), principal=principal
    )
    with pytest.raises(TooManyLiveRuns):
        store.create(new_run(principal=principal), "me", 60, Conditions(max_live_runs=1))
    assert store.runs(principal, run.conversation) == [run]
    assert [each.principal for each in store.conversations(principal, 10)] == [principal]
    over(store, run)
    assert store.delete_conversation(principal, run.conversation)
    assert store.conversations(principal, 10) == []
    assert len(store.conversations("user:a", 10)) == 1


def test_a_new_title_stays(store: Store, other: Store) -> None:
    run = started(store, conditions=Conditions(title="old"), principal="ann", created=1000)
    assert other.rename_conversation("ann", run.conversation, "new „Titel“")
    known: dict[str, Any] = {"principal": "ann", "conversation": run.conversation}
    started(store, conditions=Conditions(title="later"), created=2000, **known)
    wanted = Conversation(run.conversation, "ann", "new „Titel“", 1000, 2000)
    assert store.conversation("ann", run.conversation) == wanted
    assert other.rename_conversation("ann", run.conversation, "")
    assert store.conversations("ann", 10) == [replace(wanted, title="")]


def pages(store: Store, principal: str, limit: int) -> list[Conversation]:
    """All conversations, read page by page."""
    found = page = store.conversations(principal, limit)
    while page:
        assert len(page) <= limit
        page = store.conversations(principal, limit, (page[-1].updated, page[-1].id))
        found = found + page
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_conversations_are_paged_without_a_gap_or_a_double(store: Store, limit: int) -> None:
    runs = []
    for number in range(24):
        # Seven at the same time, then some at times very close to each other.
        created = 1000.0 if number < 7 else 1000.0 + (number // 3) * 1e-6
        runs.append(started(store, principal="ann", created=created))
        started(store, principal="bob", created=created)
    wanted = sorted(((run.created, run.conversation) for run in runs), reverse=True)
    assert [(each.updated, each.id) for each in pages(store, "ann", limit)] == wanted


def test_ids_of_one_moment_come_in_the_same_order_everywhere(store: Store) -> None:
    ids = ["a" * 16, "B" * 16, "_" * 16, "-" * 16, "b" * 16, "0" * 16, "a" * 17, "Z" * 16]
    for id in ids:
        started(store, conversation=id, created=1000)
    assert [each.id for each in pages(store, "", 3)] == sorted(ids, reverse=True)


def test_a_page_follows_a_place_that_is_no_longer_there(store: Store) -> None:
    runs = [started(store, principal="ann", created=1000.0) for _ in range(6)]
    first = store.conversations("ann", 3)
    rest = sorted((run.conversation for run in runs), reverse=True)[3:]
    place = (first[-1].updated, first[-1].id)
    assert store.delete_conversation("ann", first[-1].id)
    assert [each.id for each in store.conversations("ann", 10, place)] == rest
    # An updated conversation moves to the front, so it is not listed again.
    started(store, principal="ann", conversation=rest[0], created=2000)
    assert [each.id for each in store.conversations("ann", 10, place)] == rest[1:]
    assert store.conversations("ann", 1)[0].id == rest[0]


def test_a_deleted_conversation_leaves_nothing_behind(store: Store, other: Store) -> None:
    conversation = new_id()
    known: dict[str, Any] = {"principal": "ann", "conversation": conversation}
    ended, live = started(store, **known), started(store, **known)
    kept = started(store, principal="ann")
    over(store, ended)
    store.append([batch(live, 0, 3), batch(kept, 0)])
    store.cancel(live.id)
    assert other.delete_conversation("ann", conversation) is True
    assert other.delete_conversation("ann", conversation) is False
    assert other.conversation("ann", conversation) is None
    assert other.runs("ann", conversation) == []
    assert [each.id for each in other.conversations("ann", 10)] == [kept.conversation]
    for run in (ended, live):
        assert store.get(run.id) is None
        assert store.read(run.id, 0, 10) == []
        assert store.expired_principal(run.id) is None
    # The worker that held the live run has lost its lease.
    assert store.append([batch(live, 3), batch(kept, 1)]) == [False, True]
    assert store.append([batch(live, 0, 3)]) == [False]
    assert store.append([ending(live, 3)]) == [False]
    assert store.renew({live.id: "me", kept.id: "me"}, 60) == {
        live.id: LeaseState.LOST,
        kept.id: LeaseState.YES,
    }
    assert len(store.purge(-10, 10)) == 0
    assert store.get(live.id) is None


def test_a_deleted_run_is_not_live_and_not_taken_over(store: Store, other: Store) -> None:
    conditions = Conditions(max_live_runs=1, only_live_run=True)
    run = started(store, lease=0.001, conditions=conditions, principal="ann")
    overdue(run, store)
    assert other.delete_conversation("ann", run.conversation)
    assert other.take_over("you", 60, 10) == []
    # The same ids may be used again, without anything of the old log.
    assert other.create(run, "you", 60, conditions) is None
    assert other.get(run.id) == run
    assert other.read(run.id, 0, 10) == []
    assert other.append([batch(run, 0, 2, lease_token="you")]) == [True]
    assert store.append([batch(run, 2)]) == [False]


def test_the_deletion_of_a_watched_run_is_news(store: Store, other: Store) -> None:
    theirs, mine = started(other, principal="ann"), started(store, principal="ann")
    for run in (theirs, mine):
        store.watch(run.id)
        assert reported(store, News(run.id, cancel=False))
    quiet(store)
    assert other.delete_conversation("ann", theirs.conversation)
    assert reported(store, News(theirs.id, cancel=False))
    quiet(store)
    assert store.delete_conversation("ann", mine.conversation)
    assert reported(store, News(mine.id, cancel=False))
    assert quiet(store) == []  # it is reported only once
    # A new run with the same id is reported, too.
    assert other.create(theirs, "you", 60) is None
    assert other.append([batch(theirs, 0, lease_token="you")]) == [True]
    assert reported(store, News(theirs.id, cancel=False))


def test_a_conversation_is_removed_with_its_last_run(store: Store, other: Store) -> None:
    now = time.time()
    known: dict[str, Any] = {"principal": "ann", "conversation": new_id()}
    oldest = started(store, conditions=Conditions(title="title"), created=now - 200, **known)
    old = started(store, created=now - 100, **known)
    live = started(store, created=now - 150, **known)
    another = started(store, created=now - 100, principal="bob")
    store.append([ending(run, 0) for run in (oldest, old, another)])
    wanted = Conversation(oldest.conversation, "ann", "title", now - 200, now - 100)
    assert len(other.purge(120, 10)) == 1
    assert store.runs("ann", oldest.conversation) == [
        live,
        replace(old, seq=1, status="done", ended=0),
    ]
    assert store.conversations("ann", 10) == [wanted]
    assert len(other.purge(50, 10)) == 2
    assert store.conversation("ann", oldest.conversation) == wanted
    assert store.conversations("bob", 10) == []
    over(store, live)
    assert len(other.purge(50, 10)) == 1
    assert store.conversation("ann", oldest.conversation) is None
    assert store.conversations("ann", 10) == []
    assert store.runs("ann", oldest.conversation) == []
    assert {store.expired_principal(run.id) for run in (oldest, old, live)} == {"ann"}
    assert store.expired_principal(another.id) == "bob"
    # The next run with that id begins a new conversation.
    started(store, conditions=Conditions(title="anew"), created=now, **known)
    again = store.conversation("ann", oldest.conversation)
    assert again == Conversation(oldest.conversation, "ann", "anew", now, now)


# Counters and claims


def test_a_counter_counts(store: Store, other: Store) -> None:
    key = new_id()
    assert store.count(key, 0, 60) == 0
    assert store.count(key, 3, 60) == 3
    assert other.count(key, 4, 60) == 7
    assert other.count(key, -2, 60) == 5
    assert store.count(key, 0, 60) == 5
    assert store.count(new_id(), 1, 60) == 1


def test_a_lock_is_held_by_one_caller_at_a_time(store: Store, other: Store) -> None:
    key, inside, counts = new_id(), [], []

    def enter(which: int) -> None:
        with (store, other)[which % 2].lock(key, 20):
            inside.append(which)
            counts.append(len(inside))
            time.sleep(0.01)
            inside.remove(which)

    together(8, enter)
    assert counts == [1] * 8
    with store.lock(key, 5), pytest.raises(TimeoutError), other.lock(key, 0.1):
        pass


def test_concurrent_counts_are_not_lost(store: Store, other: Store) -> None:
    key = new_id()

    def add(which: int) -> list[int]:
        return [(store, other)[which % 2].count(key, 1, 60) for _ in range(20)]

    answers = together(8, add)
    seen = [value for each in answers if isinstance(each, list) for value in each]
    assert sorted(seen) == list(range(1, 161))


def test_a_counter_expires_and_starts_again(store: Store) -> None:
    key, kept = new_id(), new_id()
    begun = time.monotonic()
    assert store.count(kept, 1, 60) == 1
    assert store.count(key, 5, 1) == 5
    assert store.count(key, 1, 60) == 6  # does not extend its time
    settled(lambda: store.count(key, 0, 60), 0)
    assert time.monotonic() - begun > 0.9
    assert store.count(key, 2, 60) == 2
    assert store.count(kept, 1, 60) == 2


def test_a_counter_that_expired_unread_starts_again(store: Store) -> None:
    key = new_id()
    assert store.count(key, 5, 0.001) == 5
    time.sleep(0.05)
    assert store.count(key, 2, 60) == 2
    assert store.count(key, 2, 60) == 4


def test_a_key_is_claimed_once(store: Store, other: Store) -> None:
    key = new_id()
    assert store.claim(key, "mine", 60) == "mine"
    assert other.claim(key, "theirs", 60) == "mine"
    assert store.claim(key, "mine", 60) == "mine"
    other.release_claim(key, "theirs")
    assert other.claim(key, "theirs", 60) == "mine"
    store.release_claim(key, "mine")
    store.release_claim(new_id(), "mine")
    assert other.claim(key, "theirs", 60) == "theirs"
    assert store.claim(key, "mine", 60) == "theirs"
    assert store.claim(new_id(), "Ä😀 ''", 60) == "Ä😀 ''"


def test_one_of_twenty_concurrent_claims_succeeds(store: Store, other: Store) -> None:
    key = new_id()
    answers = together(20, lambda n: (store, other)[n % 2].claim(key, f"claim-{n}", 60))
    assert len(set(answers)) == 1
    assert answers[0] in {f"claim-{n}" for n in range(20)}


def test_a_claim_expires(store: Store, other: Store) -> None:
    key = new_id()
    begun = time.monotonic()
    assert store.claim(key, "mine", 1) == "mine"
    assert store.claim(key, "mine", 60) == "mine"  # does not extend its time
    settled(lambda: other.claim(key, "theirs", 60), "theirs")
    assert time.monotonic() - begun > 0.9
    assert store.claim(key, "mine", 60) == "theirs"
    store.release_claim(key, "mine")
    assert store.claim(key, "mine", 60) == "theirs"


def test_a_released_key_can_be_claimed_for_its_full_time(store: Store) -> None:
    key, short = new_id(), new_id()
    assert store.claim(key, "first", 0.05) == "first"
    store.release_claim(key, "first")
    assert store.claim(key, "second", 60) == "second"
    assert store.claim(short, "short", 0.1) == "short"
    settled(lambda: store.claim(short, "next", 60), "next")
    assert store.claim(key, "third", 60) == "second"


def test_a_counter_and_a_claim_may_have_the_same_key(store: Store) -> None:
    key = new_id()
    assert store.claim(key, "text", 60) == "text"
    assert store.count(key, 2, 60) == 2
    assert store.claim(key, "other", 60) == "text"


# News


def test_a_watched_run_is_news_even_if_nothing_happens(store: Store) -> None:
    run = started(store)
    store.watch(run.id)
    assert reported(store, News(run.id, cancel=False))
    store.watch(run.id)
    assert reported(store, News(run.id, cancel=False))


def test_each_append_of_another_store_is_news(store: Store, other: Store) -> None:
    run = started(other)
    store.watch(run.id)
    assert reported(store, News(run.id, cancel=False))
    quiet(store)
    for after in range(3):
        other.append([batch(run, after)])
        assert reported(store, News(run.id, cancel=False))
        assert len(store.read(run.id, 0, 10)) == after + 1
    other.append([ending(run, 3)])
    assert reported(store, News(run.id, cancel=False))


def test_news_wakes_a_waiting_thread(store: Store, other: Store) -> None:
    run = started(other)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reported, store, News(run.id, cancel=False))
        time.sleep(0.05)
        store.watch(run.id)
        assert waiting.result(PATIENCE)
        quiet(store)
        waiting = pool.submit(reported, store, News(run.id, cancel=False))
        other.append([batch(run, 0)])
        assert waiting.result(PATIENCE)


def test_unwatched_runs_are_not_reported(store: Store, other: Store) -> None:
    watched, never = started(other), started(other)
    store.watch(watched.id)
    other.append([batch(watched, 0), batch(never, 0)])
    received = {news.run for news in quiet(store)}
    other.append([batch(watched, 1), batch(never, 1)])
    assert reported(store, News(watched.id, cancel=False))
    received |= {news.run for news in quiet(store)}
    assert received <= {watched.id}


def test_a_run_is_not_reported_after_unwatch(store: Store, other: Store) -> None:
    run = started(other)
    store.watch(run.id)
    assert reported(store, News(run.id, cancel=False))
    store.unwatch(run.id)
    store.unwatch(new_id())
    until = time.monotonic() + PATIENCE
    for after in count():  # news that was under way may still come
        quiet(store)
        other.append([batch(run, after)])
        if not quiet(store):
            break
        assert time.monotonic() < until


def test_a_cancel_is_news_for_the_worker_that_holds_the_run(store: Store, other: Store) -> None:
    mine, cancelled = started(store), started(store)
    other.cancel(cancelled.id)
    assert reported(store, News(cancelled.id, cancel=True))
    assert not any(news.cancel for news in quiet(store))
    store.cancel(mine.id)
    assert reported(store, News(mine.id, cancel=True))


def test_a_cancel_is_news_for_the_worker_that_took_the_run_over(store: Store, other: Store) -> None:
    run = started(other, lease=0.001)
    overdue(run, other)
    assert len(store.take_over("me", 60, 1)) == 1
    other.cancel(run.id)
    assert reported(store, News(run.id, cancel=True))


def test_waiting_for_news_ends(store: Store) -> None:
    assert store.news(0) == []
    started(store)
    assert store.news(0.05) == []
    assert store.news(0) == []


# Random sequences of calls


_WRITES = st.tuples(
    st.sampled_from([0, 1]),  # the index of the run
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
def test_a_log_contains_exactly_what_was_stored(
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


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "end", "delete", "rename", "purge"]),
        st.integers(0, 2),  # the index of the conversation
        st.sampled_from(["ann", ""]),
        st.sampled_from([0, 0, 1, 2, 3]),  # max_live_runs
        st.booleans(),  # only_live_run
        st.integers(0, 3),  # the time, and the index of the run
    ),
    max_size=30,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_STEPS)
def test_conversations_match_the_reference_store(
    store: Store, other: Store, steps: list[tuple[str, int, str, int, bool, int]]
) -> None:
    reference, mark, now = MemoryStore(), new_id(), time.time()
    ids = [new_id() for _ in range(3)]
    live: list[Run] = []

    def attempt(one: Store, run: Run, conditions: Conditions) -> object:
        try:
            return one.create(run, "me", 60, conditions)
        except CreateRefused as refused:
            return type(refused)

    for number, (step, which, who, most, alone, when) in enumerate(steps):
        turn, principal, id = (store, other)[number % 2], f"{who}{mark}", ids[which]
        if step == "start":
            run = new_run(principal=principal, conversation=id, created=now - 100 * when)
            conditions = Conditions(most, alone, f"title {number}")
            answer = attempt(reference, run, conditions)
            assert attempt(turn, run, conditions) == answer
            live += [run] if answer is None else []
        elif step == "end" and live:
            ends = [ending(live.pop(when % len(live)), 0)]
            assert turn.append(ends) == reference.append(ends)
        elif step == "rename":
            title = f"title {number}"
            assert turn.rename_conversation(principal, id, title) == reference.rename_conversation(
                principal, id, title
            )
        elif step == "delete":
            assert turn.delete_conversation(principal, id) == reference.delete_conversation(
                principal, id
            )
        elif step == "purge":
            turn.purge(50 + 100 * when, 1000)
            reference.purge(50 + 100 * when, 1000)
    for principal in (f"ann{mark}", mark):
        wanted = reference.conversations(principal, 10)
        assert store.conversations(principal, 10) == wanted
        assert pages(other, principal, 1) == wanted
        for id in ids:
            assert store.conversation(principal, id) == reference.conversation(principal, id)
            assert store.runs(principal, id) == reference.runs(principal, id)
        counted = len([run for id in ids for run in store.runs(principal, id) if run.live])
        assert (
            not counted
            or attempt(store, new_run(principal=principal), Conditions(counted)) is TooManyLiveRuns
        )
        assert attempt(store, new_run(principal=principal), Conditions(counted + 1)) is None
