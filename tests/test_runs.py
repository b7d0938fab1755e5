"""A run's life in one process: its limits, its store's moods, its owner's end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langgraph.errors import GraphRecursionError

from flask_stream.engine.chain import Chain
from flask_stream.engine.history import turns
from flask_stream.engine.log_writer import LogWriter
from flask_stream.engine.maintenance import RunTimes
from flask_stream.engine.runner import RunLimits
from flask_stream.engine.runs import Runs
from flask_stream.engine.start_request import StartRequest
from flask_stream.errors import BadRequest, Conflict, Gone, NotFound, StoreError, Unavailable
from flask_stream.events import Cursor, Event, NewEvent, new_id
from flask_stream.sources.base import Input, Source, Turn
from flask_stream.sources.function import FunctionSource
from flask_stream.stores.base import NO_CONDITIONS, Batch, CreateConditions, LeaseState, Run
from flask_stream.stores.memory import MemoryStore

GENEROUS = RunLimits(first=30, silence=30, total=30)
QUESTION = {"question": "?"}


class MoodyStore(MemoryStore):
    """A memory store that can be made to fail, before or after it has done what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.gone = False  # for leases, too
        self.forgetful = 0

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        if self.away:
            raise StoreError("away")
        answer = super().append(batches)
        if self.forgetful:
            self.forgetful -= 1
            raise StoreError("the answer was lost on the way")
        return answer

    def get(self, run: str) -> Run | None:
        if self.away:
            raise StoreError("away")
        return super().get(run)

    def branch(self, run: str, limit: int) -> list[Run]:
        if self.away:
            raise StoreError("away")
        return super().branch(run, limit)

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        if self.away:
            raise StoreError("away")
        return super().create(run, lease_token, lease, conditions)

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        if self.gone:
            raise StoreError("away")
        return super().renew(leases, lease)

    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        if self.gone:
            raise StoreError("away")
        return super().take_over(lease_token, lease, limit)


Make = Callable[..., Runs]


@pytest.fixture
def store() -> MoodyStore:
    return MoodyStore()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a chain waits for; opened at the end so that no thread is left waiting."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def make(store: MoodyStore) -> Iterator[Make]:
    made: list[Runs] = []

    def make(
        function: Any,
        limits: RunLimits = GENEROUS,
        lease: float = 30,
        keep: float = 3600,
        attempts: int = 1,
    ) -> Runs:
        chains = {"chain": Chain("chain", FunctionSource(function), attempts=attempts)}
        runs = Runs(store, chains, RunTimes(limits, lease, keep))
        made.append(runs)
        return runs

    yield make
    for runs in made:
        runs.close()


def read(runs: Runs, run: str, timeout: float = 20) -> list[Event]:
    """All events to the end."""
    reader = runs.read(Cursor(run, 0))
    assert reader is not None
    events: list[Event] = []
    until = time.monotonic() + timeout
    try:
        while time.monotonic() < until:
            shared = reader.take()
            if shared is None:
                reader.wait(0.1)
                continue
            events += shared.events
            if shared.ended:
                return events
    finally:
        reader.close()
    raise AssertionError(f"no end in {events}")


def ask(runs: Runs) -> str:
    """Start a run; its id."""
    return runs.admission.start(StartRequest("chain", QUESTION))[0].id


def end_of(events: list[Event]) -> dict[str, Any]:
    assert [event.type for event in events].count("end") == 1
    end: dict[str, Any] = json.loads(events[-1].data)
    return end


def text(events: list[Event]) -> str:
    return "".join(json.loads(e.data)["content"] for e in events if e.type == "chunk")


def test_a_run_is_read_to_its_end(make: Make) -> None:
    runs = make(lambda q: iter(["a", "b"]))
    run, new = runs.admission.start(StartRequest("chain", QUESTION))
    assert new
    events = read(runs, run.id)
    assert [event.type for event in events] == ["start", "message_start", "chunk", "chunk", "end"]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert read(runs, run.id) == events
    assert runs.read(Cursor(run.id, 5)) is None
    until = time.monotonic() + 10
    while runs.live_run_count and time.monotonic() < until:
        time.sleep(0.01)
    assert runs.live_run_count == 0


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (RunLimits(first=0.2, silence=30, total=30), ""),
        (RunLimits(first=30, silence=0.2, total=30), "a"),
        (RunLimits(first=30, silence=30, total=0.2), "a"),
    ],
    ids=["first token", "silence", "whole run"],
)
def test_a_limit_ends_the_run(
    make: Make, gate: threading.Event, limits: RunLimits, said: str
) -> None:
    def slow(_: str) -> Iterator[str]:
        yield from said
        gate.wait()
        yield "too late"

    runs = make(slow, limits)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    events = read(runs, run.id)
    assert end_of(events)["error"]["code"] == "timeout"
    assert text(events) == said


def test_the_end_says_why_the_model_stopped(make: Make) -> None:
    def cut(question: str) -> Iterator[Any]:
        yield AIMessageChunk(content="a", response_metadata={"stop_reason": "max_tokens"})
        if question == "fail":
            raise KeyError("x")

    runs = make(cut)
    assert end_of(read(runs, ask(runs))) == {
        "status": "done", "finish_reason": "length", "error": None,
    }  # fmt: skip
    run, _ = runs.admission.start(StartRequest("chain", {"question": "fail"}))
    assert end_of(read(runs, run.id))["finish_reason"] is None


def test_a_graphs_step_limit_is_the_reason_of_a_failed_run(make: Make) -> None:
    def loop(_: str) -> Iterator[str]:
        yield "a"
        raise GraphRecursionError("25 steps")

    runs = make(loop)
    end = end_of(read(runs, ask(runs)))
    assert (end["status"], end["finish_reason"]) == ("failed", "step_limit")
    assert end["error"]["code"] == "chain_error"


def test_what_a_stopped_chain_still_says_is_not_written(make: Make, gate: threading.Event) -> None:
    closed = threading.Event()

    def stubborn(_: str) -> Iterator[str]:
        try:
            yield "a"
            gate.wait()
            yield "b"
            yield "c"
        finally:
            closed.set()

    runs = make(stubborn)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    assert runs.cancel(run.id, 10, "").status == "cancelled"
    gate.set()
    assert closed.wait(10)
    events = read(runs, run.id)
    assert end_of(events) == {"status": "cancelled", "finish_reason": None, "error": None}
    assert "b" not in text(events)


def test_a_chain_that_fails_ends_the_run(make: Make) -> None:
    def failing(_: str) -> Iterator[str]:
        yield "a"
        raise RuntimeError("sk-secret")

    runs = make(failing)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    events = read(runs, run.id)
    assert end_of(events)["error"]["code"] == "chain_error"
    assert "sk-secret" not in str(events)


def test_an_answer_lost_on_the_way_stores_nothing_twice(make: Make, store: MoodyStore) -> None:
    store.forgetful = 2
    runs = make(lambda q: iter("abc"))
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    events = read(runs, run.id)
    assert text(events) == "abc"
    assert [event.seq for event in events] == list(range(1, 7))


def test_nothing_is_shown_that_is_not_stored(
    make: Make, store: MoodyStore, gate: threading.Event
) -> None:
    def chain(_: str) -> Iterator[str]:
        yield "a"
        gate.wait()
        yield "b"
        gate.wait()
        time.sleep(30)

    runs = make(chain, lease=1)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    reader = runs.read(Cursor(run.id, 0))
    assert reader is not None
    seen: list[Event] = []
    while text(seen) != "a":
        shared = reader.take()
        seen += shared.events if shared else []
        if shared is None:
            reader.wait(1)
    store.away = True
    gate.set()
    # The store stays away for longer than is waited for it: the viewer is told, and no more.
    shared = None
    until = time.monotonic() + 20
    while shared is None and time.monotonic() < until:
        reader.wait(0.2)
        shared = reader.take()
    reader.close()
    assert shared is not None
    assert [(event.seq, event.type) for event in shared.events] == [(0, "end")]
    assert json.loads(shared.events[0].data)["error"]["code"] == "store_error"
    with pytest.raises(Unavailable):
        runs.admission.start(StartRequest("chain", QUESTION))
    store.away = False
    # It is back: the run is ended there, too, once, after all that was said.
    until = time.monotonic() + 20
    while runs.get(run.id).live and time.monotonic() < until:
        time.sleep(0.05)
    events = read(runs, run.id)
    assert end_of(events)["error"]["code"] == "store_error"
    assert events[: len(seen)] == seen
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_an_end_that_cannot_be_stored_is_no_end(make: Make, store: MoodyStore) -> None:
    def chain(_: str) -> Iterator[str]:
        yield "a"
        time.sleep(0.2)
        store.away = True

    runs = make(chain, lease=1)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    events = read(runs, run.id)
    assert (events[-1].seq, events[-1].type) == (0, "end")
    assert end_of(events)["error"]["code"] == "store_error"
    store.away = False
    until = time.monotonic() + 20
    while runs.get(run.id).live and time.monotonic() < until:
        time.sleep(0.05)
    # It had ended, and well: whoever comes later is told so.
    assert end_of(read(runs, run.id))["status"] == "done"


def test_a_run_that_the_store_was_away_for_is_not_taken_for_a_dead_workers(
    make: Make, store: MoodyStore, gate: threading.Event
) -> None:
    asked: list[str] = []

    def chain(question: str) -> Iterator[str]:
        asked.append(question)
        yield "a"
        gate.wait()
        yield "b"

    runs = make(chain, lease=1, attempts=3)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    wait_for(lambda: len(store.read(run.id, 0, 9)) > 2)
    store.away = store.gone = True
    gate.set()
    time.sleep(2)  # by now, nobody holds it any more
    store.away = store.gone = False
    until = time.monotonic() + 20
    while runs.get(run.id).live and time.monotonic() < until:
        time.sleep(0.05)
    events = read(runs, run.id)
    assert (text(events), end_of(events)["status"]) == ("ab", "done")
    assert asked == ["?"]


def test_a_store_that_can_only_be_read(
    make: Make, store: MoodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise StoreError("no room")

    runs = make(lambda q: iter("a"))
    runs.check_ready()
    elsewhere = Run(new_id(), "chain", new_id(), None, "", json.dumps(QUESTION), time.time())
    store.create(elsewhere, "another", 30)
    monkeypatch.setattr(store, "cancel", full)
    monkeypatch.setattr(store, "claim", full)
    with pytest.raises(Unavailable):
        runs.cancel(elsewhere.id, 1, "")
    with pytest.raises(Unavailable):
        runs.check_ready()


def test_the_same_question_in_another_order_is_the_same(make: Make) -> None:
    runs = make(lambda input: iter("a"))
    id = new_id()
    one, _ = runs.admission.start(StartRequest("chain", {"a": 1, "b": {"c": 2, "d": 3}}, run=id))
    two, new = runs.admission.start(StartRequest("chain", {"b": {"d": 3, "c": 2}, "a": 1}, run=id))
    assert (one.id, new) == (two.id, False)


def test_a_turn_is_whole_messages_and_says_whether_it_came_to_its_end(
    make: Make, store: MoodyStore
) -> None:
    def chain(question: str) -> Iterator[Any]:
        for n in range(3):
            for id in ("left", "right"):
                yield AIMessageChunk(content=f"{id[0]}{n} ", id=id)
        if question == "fail":
            raise ValueError

    runs = make(chain)
    for question, whole in ("go", True), ("fail", False):
        run, _ = runs.admission.start(StartRequest("chain", {"question": question}))
        read(runs, run.id)
        assert turns(store, store.branch(run.id, 9), 9) == [
            Turn(question, "l0 l1 l2 \n\nr0 r1 r2 ", whole)
        ]


def test_what_a_chain_keeps_goes_with_its_last_run(store: MoodyStore) -> None:
    forgotten: list[str] = []

    class Keeps(FunctionSource):
        def forget(self, thread: str) -> None:
            forgotten.append(thread)

    threads: list[str] = []

    def function(input: Input) -> Iterator[str]:
        threads.append(input.thread)
        yield "a"

    chains = {name: Chain(name, Keeps(function)) for name in ("one", "two")}
    runs = Runs(store, chains, RunTimes(GENEROUS, 1, 2))
    try:
        asked = StartRequest("one", QUESTION, principal="user:ann", conversation=new_id())
        for chain in ("one", "two"):
            run, _ = runs.admission.start(replace(asked, chain=chain))
            wait_for(lambda id=run.id: not store.get(id).live)  # type: ignore[misc,union-attr]
            time.sleep(1.2)
        wait_for(lambda: len(forgotten) == 1)
        assert forgotten == threads[:1]
        wait_for(lambda: forgotten == threads)
    finally:
        runs.close()


def test_one_of_many_starts_asks_the_chain(make: Make) -> None:
    asked: list[str] = []

    def chain(question: str) -> Iterator[str]:
        asked.append(question)
        yield "once"

    runs = make(chain)
    id = new_id()
    news: list[bool] = []

    def start() -> None:
        news.append(runs.admission.start(StartRequest("chain", QUESTION, run=id))[1])

    threads = [threading.Thread(target=start) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(news) == [False] * 49 + [True]
    assert text(read(runs, id)) == "once"
    assert asked == ["?"]


def test_runs_are_forgotten_whole_and_known_to_be(make: Make, store: MoodyStore) -> None:
    runs = make(lambda q: iter("a"), lease=1, keep=0.1)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    until = time.monotonic() + 20
    while store.get(run.id) and time.monotonic() < until:
        time.sleep(0.05)
    with pytest.raises(Gone):
        runs.get(run.id)
    with pytest.raises(NotFound):
        runs.get(new_id())


def test_a_run_whose_owner_is_gone_is_ended_by_whoever_looks(make: Make, store: MoodyStore) -> None:
    run = Run(new_id(), "chain", new_id(), None, "", '{"question":"?"}', time.time())
    assert store.create(run, "somebody else", lease=0) is None
    runs = make(lambda q: iter("a"), lease=1)
    events = read(runs, run.id)
    assert [event.type for event in events] == ["start", "end"]
    assert end_of(events)["error"]["code"] == "worker_lost"
    assert not store.append([Batch(run.id, "somebody else", 0, [Event(1, "chunk", "{}")], None)])[0]


def test_a_run_that_was_followed_and_is_taken_over_is_followed_no_more(
    make: Make, store: MoodyStore
) -> None:
    run = Run(new_id(), "chain", new_id(), None, "", '{"question":"?"}', time.time())
    assert store.create(run, "somebody else", lease=0.7) is None
    runs = make(lambda q: iter("a"), lease=1)
    reader = runs.read(Cursor(run.id, 0))
    assert reader is not None
    assert store._watched == {run.id}
    assert end_of(read(runs, run.id))["error"]["code"] == "worker_lost"
    reader.close()
    assert store._watched == set()


def test_places_that_cannot_be_are_refused(make: Make, gate: threading.Event) -> None:
    def chain(_: str) -> Iterator[str]:
        yield "a"
        gate.wait()

    runs = make(chain)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    with pytest.raises(BadRequest):
        runs.read(Cursor(run.id, 1000))
    with pytest.raises(Conflict):
        runs.admission.start(StartRequest("chain", {"question": "another"}, run=run.id))
    with pytest.raises(NotFound):
        runs.admission.start(StartRequest("chain", QUESTION, parent=new_id()))
    with pytest.raises(NotFound):
        runs.admission.start(StartRequest("nothing", QUESTION))


def test_a_worker_that_goes_ends_what_it_cannot_finish(make: Make, gate: threading.Event) -> None:
    def chain(_: str) -> Iterator[str]:
        yield "a"
        gate.wait()

    runs = make(chain)
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    runs.drain(0.2)
    assert end_of(read(runs, run.id))["error"]["code"] == "worker_lost"
    with pytest.raises(Unavailable):
        runs.admission.start(StartRequest("chain", QUESTION))


def test_a_chain_may_outrun_the_store_only_so_far(store: MoodyStore) -> None:
    said = 0

    class Fast(Source):
        def check(self, value: dict[str, Any]) -> None:
            assert value == QUESTION

        def stream(self, input: Input) -> Generator[NewEvent, None, None]:
            nonlocal said
            store.away = True
            for _ in range(300_000):
                said += 1
                yield "custom", "{}"

    runs = Runs(store, {"chain": Chain("chain", Fast())}, RunTimes(GENEROUS, 30, 3600))
    run, _ = runs.admission.start(StartRequest("chain", QUESTION))
    time.sleep(0.5)
    assert said < 300_000
    store.away = False
    assert len(read(runs, run.id)) == 300_002
    runs.close()


# What goes wrong where it must not matter


class Cancelled(BaseException):
    """As asyncio's, or gevent's Timeout: no Exception."""


def test_whatever_a_chain_raises_its_run_ends(make: Make, store: MoodyStore) -> None:
    def chain(question: str) -> Iterator[str]:
        yield "half"
        raise Cancelled

    runs = make(chain)
    run = ask(runs)
    assert [event.type for event in read(runs, run)][-1] == "end"
    found = store.get(run)
    assert found is not None
    assert found.status == "failed"


def test_a_chain_that_is_given_up_is_charged_once(store: MoodyStore, gate: threading.Event) -> None:
    charged: list[int] = []
    ended = threading.Event()

    def chain(question: str) -> Iterator[str]:
        try:
            yield "a"
            gate.wait()
            yield "b"
        finally:
            ended.set()

    runs = Runs(
        store,
        {"chain": Chain("chain", FunctionSource(chain))},
        RunTimes(GENEROUS, 30, 3600),
        lambda principal, tokens: charged.append(tokens),
    )
    try:
        run = ask(runs)
        wait_for(lambda: len(store.read(run, 0, 9)) > 2)
        assert runs.cancel(run, 5, "").status == "cancelled"
        wait_for(lambda: charged)
        gate.set()
        assert ended.wait(10)
        wait_for(lambda: not [t for t in threading.enumerate() if t.name == f"run {run}"])
        assert len(charged) == 1
    finally:
        runs.close()


def test_news_that_could_not_be_read_is_looked_for_again(
    make: Make, store: MoodyStore, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []
    known = store.read

    def read_once_failing(run: str, after: int, limit: int) -> list[Event]:
        if not failures and threading.current_thread().name == "_follow_loop" and gate.is_set():
            failures.append(run)
            raise StoreError("locked")
        return known(run, after, limit)

    def chain(question: str) -> Iterator[str]:
        yield "a"
        gate.wait()
        yield "b"

    owner, viewer = make(chain), make(chain)
    # The store tells its news once: here, to the viewer's process alone.
    monkeypatch.setattr(owner._live_runs.journal, "_follow_loop", lambda: None)
    run = ask(owner)
    reader = viewer.read(Cursor(run, 0))
    assert reader is not None
    wait_for(lambda: reader.take() is not None)
    monkeypatch.setattr(store, "read", read_once_failing)
    gate.set()
    types: list[str] = []

    def all_read() -> bool:
        shared = reader.take()
        types.extend(event.type for event in shared.events) if shared else None
        return types[-1:] == ["end"]

    wait_for(all_read)
    reader.close()
    assert failures


def test_a_reader_of_what_is_removed_is_told(make: Make) -> None:
    def chain(question: str) -> Iterator[tuple[str, Any]]:
        yield from (("custom", {"name": "n", "value": n}) for n in range(3000))

    runs = make(chain)
    conversation = new_id()
    asked = StartRequest("chain", QUESTION, principal="user:1", conversation=conversation)
    run = runs.admission.start(asked)[0].id
    wait_for(lambda: not runs.live_run_count)
    reader = runs.read(Cursor(run, 0), "user:1")
    assert reader is not None
    first = reader.take()
    assert first is not None
    assert not first.ended
    runs.conversations.remove("user:1", conversation)
    last = reader.take()
    assert last is not None
    assert [event.type for event in last.events] == ["end"]
    reader.close()


def test_a_worker_that_goes_takes_over_nobodys_runs(make: Make, store: MoodyStore) -> None:
    leaving = make(lambda question: iter(["a"]), lease=1)
    leaving._live_runs.start_maintenance()
    leaving._live_runs.draining = True
    store.create(
        Run(new_id(), "chain", new_id(), None, "", json.dumps(QUESTION), time.time()), "dead", 0.1
    )
    time.sleep(1.5)  # five of its rounds
    (lost,) = store.take_over("another", 30, 9)
    assert lost.live


def test_while_ends_of_others_cannot_be_stored_leases_are_renewed(
    make: Make, store: MoodyStore, gate: threading.Event
) -> None:
    def chain(question: str) -> Iterator[str]:
        yield "a"
        gate.wait()

    runs = make(chain, lease=2)
    run = ask(runs)
    wait_for(lambda: len(store.read(run, 0, 9)) > 2)
    store.away = True  # for writing; leases can be renewed
    for _ in range(8):
        lost = Run(new_id(), "chain", new_id(), None, "", json.dumps(QUESTION), time.time())
        MemoryStore.create(store, lost, "dead", 0.01)
    # Each of eight ends would be waited for, for more than a second.
    time.sleep(4)
    assert run not in [one.id for one in store.take_over("another", 30, 9)]
    store.away = False


def test_one_that_cannot_be_told_does_not_end_the_writing(
    make: Make, store: MoodyStore, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chain(question: str) -> Iterator[str]:
        yield "a"
        gate.wait()
        yield "b"

    runs = make(chain)
    run = ask(runs)
    wait_for(lambda: len(store.read(run, 0, 9)) > 2)
    monkeypatch.setattr(LogWriter, "stored", no_thread)
    gate.set()
    time.sleep(0.5)
    monkeypatch.undo()
    assert [event.type for event in read(runs, ask(runs))][-1] == "end"


def no_thread(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def wait_for(condition: Callable[[], object], timeout: float = 15) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)
