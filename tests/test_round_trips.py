"""How many calls of the store a question costs, whatever the length of its conversation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_stream.engine.chain import Chain
from flask_stream.engine.maintenance import RunTimes
from flask_stream.engine.runner import RunLimits
from flask_stream.engine.runs import Runs
from flask_stream.engine.start_request import StartRequest
from flask_stream.events import Cursor, Event, NewEvent, chunk
from flask_stream.sources.base import Input, Source
from flask_stream.stores.base import Batch, Run, Store
from flask_stream.stores.memory import MemoryStore
from flask_stream.stores.redis import RedisStore
from flask_stream.stores.sqlite import SqliteStore

from .valkey import Valkey

WHO = "user:ann"
#: What a process calls by itself, now and then.
_BACKGROUND = {"renew", "take_over", "purge", "news", "watch", "unwatch", "close"}


def counting(store: Store, calls: Counter[str]) -> Store:
    """The store, which counts the calls of its contract."""

    def count(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return method(*args, **kwargs)

        return called

    for name in Store.__abstractmethods__ - _BACKGROUND:
        setattr(store, name, count(name, getattr(store, name)))
    return store


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "redis":
        with Valkey() as server:
            yield (opened := RedisStore(server.url))
            opened.close()
        return
    opened_here: Store = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "db")
    )
    yield opened_here
    opened_here.close()


@pytest.fixture
def asked() -> list[Input]:
    return []


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


@pytest.fixture
def runs(store: Store, asked: list[Input], calls: Counter[str]) -> Iterator[Runs]:
    class Answers(Source):
        def check(self, value: dict[str, Any]) -> None:
            pass

        def stream(self, input: Input) -> Generator[NewEvent, None, None]:
            asked.append(input)
            yield "chunk", chunk("an ", "m")
            yield "chunk", chunk("answer", "m")

    times = RunTimes(RunLimits(60, 60, 60), 30, 86_400)
    made = Runs(counting(store, calls), {"chat": Chain("chat", Answers())}, times)
    yield made
    made._live_runs.drain(5)
    made._live_runs.close()


def finish(runs: Runs, run: Run) -> list[Event]:
    """The run's events, to its end."""
    reader = runs.read(Cursor(run.id, 0), run.principal)
    assert reader is not None
    events: list[Event] = []
    deadline = time.monotonic() + 60
    try:
        while not events or events[-1].type != "end":
            assert time.monotonic() < deadline
            batch = reader.take()
            if batch is None:
                reader.wait(1)
            else:
                events += batch.events
    finally:
        reader.close()
    settle(runs)
    return events


def settle(runs: Runs) -> None:
    """Wait until no run is live, without a call of the store."""
    deadline = time.monotonic() + 60
    while runs.live_run_count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(runs: Runs, conversation: str) -> Run:
    run, _ = runs.admission.start(StartRequest("chat", {"question": "q"}, WHO, None, conversation))
    return run


CONVERSATION = "c" * 32


def test_a_question_costs_the_same_after_forty_turns_as_after_one(
    runs: Runs, asked: list[Input], calls: Counter[str]
) -> None:
    costs: list[Counter[str]] = []
    for _ in range(41):
        calls.clear()
        ask(runs, CONVERSATION)
        settle(runs)
        costs.append(calls.copy())
    assert [turn.answer for turn in asked[-1].history] == ["an answer"] * 40
    for cost in costs:
        assert 1 <= cost.pop("append") <= 4  # four events, in one batch or several
    assert costs[0] == {"newest": 1, "create": 1}
    assert all(cost == {"newest": 1, "create": 1, "branch": 1} for cost in costs[1:])


def test_a_resume_reads_the_run_once_and_its_log_once(runs: Runs, calls: Counter[str]) -> None:
    run = ask(runs, CONVERSATION)
    events = finish(runs, run)
    calls.clear()
    reader = runs.read(Cursor(run.id, 1), WHO)
    assert reader is not None
    batch = reader.take()
    reader.close()
    assert batch is not None
    assert batch.events == events[1:]
    assert calls == {"get": 1, "read": 1}


def test_a_conversation_is_read_with_its_answers_in_two_calls(
    runs: Runs, calls: Counter[str]
) -> None:
    for _ in range(5):
        finish(runs, ask(runs, CONVERSATION))
    calls.clear()
    _, found = runs.conversations.get(WHO, CONVERSATION)
    assert [runs.answer(run) for run in found] == ["an answer"] * 5
    assert calls == {"conversation": 1, "runs": 1}


def test_a_run_says_when_it_began_and_ended_as_its_log_does(runs: Runs, store: Store) -> None:
    run = ask(runs, CONVERSATION)
    events = finish(runs, run)
    stored = store.get(run.id)
    assert stored is not None
    assert stored.first_chunk == next(event.at for event in events if event.type == "chunk")
    assert stored.ended == events[-1].at
    assert stored.started is not None
    assert 0 <= stored.started <= stored.first_chunk <= stored.ended
    assert stored.created + stored.ended / 1000 <= time.time()
    assert stored.answer == '"an answer"'


def test_an_answer_that_is_not_stored_is_read_from_the_log(
    runs: Runs, store: Store, asked: list[Input]
) -> None:
    """As of a run from an earlier version, or one whose worker died."""
    run = ask(runs, CONVERSATION)
    events = finish(runs, run)
    old = Run("o" * 32, "chat", CONVERSATION, run.id, WHO, run.input, time.time())
    assert store.create(old, "token", 60) is None
    assert store.append([Batch(old.id, "token", 0, events, "done")]) == [True]
    finish(runs, ask(runs, CONVERSATION))
    assert [turn.answer for turn in asked[-1].history] == ["an answer"] * 2
