"""A second question while a run is live: refused, queued, interrupting it or replacing it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from flask_stream.engine.chain import Chain
from flask_stream.engine.maintenance import RunTimes
from flask_stream.engine.runner import RunLimits
from flask_stream.engine.runs import Runs
from flask_stream.engine.start_request import StartRequest
from flask_stream.events import Cursor, Event, NewEvent, chunk, encode, new_id
from flask_stream.sources.base import Input, Source, Turn
from flask_stream.stores.base import NO_CONDITIONS, Batch, ConversationBusy, CreateConditions, Run
from flask_stream.stores.memory import MemoryStore

from .people import Sent, refused
from .provider import Provider
from .sse import Response
from .talks import (
    HALF,
    Pair,
    about,
    ask,
    at_once,
    begun,
    conversation_of,
    described,
    finish,
    half,
    person,
    read,
    serving,
    stop,
    told,
    tree,
)


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis"])
def _pair(
    request: pytest.FixtureRequest, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with serving(request.param, tmp_path_factory.mktemp("multitask"), _provider) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair, provider: Provider) -> Pair:
    """Where the question `live` is answered by half, until that is released."""
    provider.script = about
    provider.scripts["live"] = HALF
    return _pair


@pytest.fixture
def who(pair: Pair) -> Sent:
    return person(pair.one)


def asked(pair: Pair) -> list[str]:
    """The questions that have come to the model."""
    return [call.question for call in pair.provider.calls]


def by_many(pair: Pair, count: int, who: Sent, question: str, **fields: Any) -> list[Response]:
    """So many ask the same at the same moment, by turns at both; `{}` is their number."""
    return at_once(
        *(partial(pair.turn(n).ask, question.format(n), who, **fields) for n in range(count))
    )


# Refuse


def test_a_second_question_is_refused(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who)
    talk = conversation_of(pair.one, run, who)
    for site in (pair.one, pair.two):
        for place in ({"parent": run}, {"conversation": talk, "parent": None}):
            refused(site.ask("second", who, **place), 409, "conversation")
        refused(site.ask("second", who, conversation=talk), 409, "conversation")
        # Whichever of its chains has the one that is live.
        refused(site.ask("second", who, chain="cached", conversation=talk), 409, "conversation")
        with site.listen("second", who, conversation=talk) as stream:
            assert stream.status == 409
    assert asked(pair) == ["live"]
    assert tree(pair.two, talk, who) == [("live", None, "running")]
    # The live one itself may be asked for again, and other conversations are not busy.
    assert pair.two.ask("live", who, conversation=talk, run=run).status == 200
    assert ask(pair.two, "elsewhere", who).status == "done"
    pair.provider.release()
    assert read(pair.two, run, who).text == "half of an answer"
    assert ask(pair.two, "second", who, conversation=talk).status == "done"


def test_of_many_at_once_one_starts(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "before", who).start["conversation"]
    for talk in (first, new_id()):
        pair.provider.calls.clear()
        answers = by_many(pair, 6, who, "live", conversation=talk)
        started = [answer for answer in answers if answer.status == 201]
        others = [answer for answer in answers if answer.status != 201]
        assert len(started) == 1
        for answer in others:
            refused(answer, 409, "conversation")
        assert pair.provider.wait_calls(1)
        pair.provider.release()
        assert read(pair.one, started[0].json()["run"], who).status == "done"
        assert asked(pair) == ["live"]


# Queue


def test_a_queued_question_follows_the_whole_answer(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="queue")
    talk = conversation_of(pair.one, run, who)
    second = pair.two.start("second", who, chain="queue", conversation=talk)
    third = pair.one.start("third", who, chain="queue", conversation=talk)
    assert [state for *_, state in tree(pair.two, talk, who)] == ["running"] * 3
    assert asked(pair) == ["live"]
    pair.provider.release()
    for id in (run, second, third):
        assert read(pair.two, id, who).status == "done"
    so_far = ["human: live", "ai: half of an answer", "human: second"]
    assert told(pair.provider.calls[1]) == so_far
    assert told(pair.provider.calls[2]) == [*so_far, "ai: about second", "human: third"]
    assert tree(pair.one, talk, who) == [
        ("live", None, "done"),
        ("second", "live", "done"),
        ("third", "second", "done"),
    ]


def test_one_that_follows_another_branch_waits_all_the_same(pair: Pair, who: Sent) -> None:
    talk = ask(pair.one, "first", who).start["conversation"]
    run = begun(pair.one, "live", who, chain="queue", conversation=talk)
    pair.provider.scripts["ROOT"] = HALF
    anew = pair.two.start("ROOT", who, chain="queue", conversation=talk, parent=None)
    last = pair.two.start("last", who, chain="queue", conversation=talk, parent=None)
    elsewhere = ask(pair.two, "elsewhere", who, chain="queue")
    # Started after them, and answered.
    assert elsewhere.status == "done"
    assert asked(pair) == ["first", "live", "elsewhere"]
    pair.provider.release()
    assert read(pair.one, run, who).status == "done"
    assert pair.provider.wait_calls(4)
    assert told(pair.provider.calls[3]) == ["human: ROOT"]
    pair.provider.release()
    assert read(pair.one, anew, who).status == "done"
    assert read(pair.one, last, who).status == "done"
    assert told(pair.provider.calls[4]) == ["human: last"]


def test_a_queued_question_is_stopped_before_it_begins(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="queue")
    talk = conversation_of(pair.one, run, who)
    here = pair.one.start("here", who, chain="queue", conversation=talk)
    there = pair.two.start("there", who, chain="queue", conversation=talk)
    last = pair.two.start("last", who, chain="queue", conversation=talk)
    for id in (here, there):
        stopped = stop(pair.one, id, who)
        assert (stopped.status, stopped.json()["status"]) == (200, "cancelled")
        assert read(pair.two, id, who).types == ["start", "end"]
    assert described(pair.one, run, who)["status"] == "running"
    pair.provider.release()
    assert read(pair.one, run, who).text == "half of an answer"
    assert read(pair.one, last, who).status == "done"
    assert asked(pair) == ["live", "last"]
    so_far = ["human: live", "ai: half of an answer", "human: here", "human: there", "human: last"]
    assert [said for said in told(pair.provider.calls[1]) if said != "ai: "] == so_far


def test_one_that_fails_does_not_hold_up_the_queue(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["live"] = replace(HALF, fault="rst", after=1)
    run = begun(pair.one, "live", who, chain="queue")
    second = pair.two.start("second", who, chain="queue", parent=run)
    pair.provider.release()
    assert read(pair.two, run, who).status == "failed"
    assert read(pair.two, second, who).status == "done"
    assert told(pair.provider.calls[1]) == ["human: live", "ai: half of ", "human: second"]


def test_neither_does_one_that_is_stopped(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="queue")
    second = pair.two.start("second", who, chain="queue", parent=run)
    assert stop(pair.two, run, who).json()["status"] == "cancelled"
    assert pair.provider.calls[0].wait_closed()
    assert read(pair.one, second, who).status == "done"
    assert told(pair.provider.calls[1]) == ["human: live", "ai: half of ", "human: second"]


def test_queued_by_many_at_once_they_come_one_after_another(pair: Pair, who: Sent) -> None:
    talk = new_id()
    answers = by_many(pair, 6, who, "{}", chain="queue", conversation=talk)
    for answer in answers:
        assert answer.status == 201
        assert read(pair.one, answer.json()["run"], who).status == "done"
    calls = pair.provider.calls
    assert sorted(asked(pair)) == list("012345")
    # None is asked while another is answered, and each knows of all before it.
    for place, call in enumerate(calls):
        before = told(call)[:-1]
        assert before[::2] == [f"human: {question}" for question in asked(pair)[:place]]
        assert before[1::2] == [said.replace("human: ", "ai: about ") for said in before[::2]]


# Interrupt


@pytest.mark.parametrize("word", ["chain", "request"])
def test_the_live_one_is_interrupted_and_its_text_is_kept(pair: Pair, who: Sent, word: str) -> None:
    chain = "interrupt" if word == "chain" else "chat"
    fields = {} if word == "chain" else {"multitask": "interrupt"}
    run = begun(pair.one, "live", who, chain=chain)
    talk = conversation_of(pair.one, run, who)
    second = ask(pair.two, "second", who, chain=chain, conversation=talk, **fields)
    assert pair.provider.calls[0].wait_closed()
    assert read(pair.one, run, who).status == "cancelled"
    assert told(pair.provider.calls[1]) == ["human: live", "ai: half of ", "human: second"]
    assert second.start["parent"] == run
    assert tree(pair.one, talk, who) == [("live", None, "cancelled"), ("second", "live", "done")]


def test_anyones_is_interrupted_too(pair: Pair) -> None:
    run = begun(pair.one, "live", chain="interrupt")
    second = ask(pair.two, "second", chain="interrupt", parent=run)
    assert pair.provider.calls[0].wait_closed()
    assert read(pair.one, run).status == "cancelled"
    assert second.start["parent"] == run


def test_of_many_interruptions_at_once_one_is_left(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="interrupt")
    talk = conversation_of(pair.one, run, who)
    answers = by_many(pair, 4, who, "live", chain="interrupt", conversation=talk)
    assert {answer.status for answer in answers} == {201}
    runs = [run, *(answer.json()["run"] for answer in answers)]
    live = [id for id in runs if described(pair.one, id, who)["status"] == "running"]
    assert len(live) == 1
    half(pair.one, live[0], who)
    pair.provider.release()
    ends = [read(pair.two, id, who).status for id in runs]
    assert sorted(ends) == ["cancelled"] * 4 + ["done"]


# Replace


@pytest.mark.parametrize("word", ["chain", "request"])
def test_the_live_one_is_replaced_and_its_text_is_not_told(
    pair: Pair, who: Sent, word: str
) -> None:
    chain = "replace" if word == "chain" else "chat"
    fields = {} if word == "chain" else {"multitask": "replace"}
    first = ask(pair.one, "first", who, chain=chain)
    talk = first.start["conversation"]
    run = begun(pair.one, "live", who, chain=chain, conversation=talk)
    second = ask(pair.two, "second", who, chain=chain, conversation=talk, **fields)
    assert pair.provider.calls[1].wait_closed()
    assert read(pair.one, run, who).status == "cancelled"
    assert told(pair.provider.calls[2]) == ["human: first", "ai: about first", "human: second"]
    assert second.start["parent"] == described(pair.one, run, who)["parent"] == first.run
    assert tree(pair.one, talk, who) == [
        ("first", None, "done"),
        ("live", "first", "cancelled"),
        ("second", "first", "done"),
    ]


def test_the_very_first_is_replaced(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="replace")
    second = ask(pair.two, "second", who, chain="replace", parent=run)
    assert pair.provider.calls[0].wait_closed()
    assert second.start["parent"] is None
    assert second.start["conversation"] == conversation_of(pair.one, run, who)
    assert told(pair.provider.calls[1]) == ["human: second"]


def test_one_that_has_ended_is_not_replaced(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "first", who, chain="replace")
    second = ask(pair.two, "second", who, chain="replace", parent=first.run)
    assert second.start["parent"] == first.run


@pytest.mark.parametrize("word", ["interrupt", "replace"])
def test_those_that_wait_go_with_the_live_one(pair: Pair, who: Sent, word: str) -> None:
    run = begun(pair.one, "live", who, chain="queue")
    talk = conversation_of(pair.one, run, who)
    waiting = [
        site.start(f"wait {n}", who, chain="queue", conversation=talk)
        for n, site in enumerate((pair.one, pair.two, pair.two))
    ]
    second = ask(pair.two, "second", who, conversation=talk, multitask=word)
    for id in (run, *waiting):
        assert read(pair.one, id, who).status == "cancelled"
    assert asked(pair) == ["live", "second"]
    last = [said for said in told(pair.provider.calls[1]) if said != "ai: "]
    if word == "replace":
        assert second.start["parent"] is None
        assert last == ["human: second"]
    else:
        assert second.start["parent"] == waiting[-1]
        assert last[:2] == ["human: live", "ai: half of "]


# Words


@pytest.mark.parametrize("word", ["stop", "Queue", "queue ", 7, ["queue"]])
def test_what_is_no_word(pair: Pair, who: Sent, word: Any) -> None:
    refused(pair.one.ask("?", who, multitask=word), 400, "multitask")
    if isinstance(word, str):
        with pair.two.listen("?", who, multitask=word) as stream:
            assert stream.status == 400
            assert json.loads(stream.read())["field"] == "multitask"
    assert asked(pair) == []


def test_the_request_goes_before_the_chain(pair: Pair, who: Sent) -> None:
    run = begun(pair.one, "live", who, chain="interrupt")
    refused(
        pair.two.ask("?", who, chain="interrupt", parent=run, multitask="refuse"),
        409,
        "conversation",
    )
    talk = conversation_of(pair.one, run, who)
    with pair.two.listen("second", who, conversation=talk, multitask="queue") as stream:
        pair.provider.release()
        assert list(stream.events())[-1].type == "end"
    assert told(pair.provider.calls[1])[1] == "ai: half of an answer"


# The live one's worker


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_queued_question_outlives_the_worker_of_the_live_one(
    provider: Provider, tmp_path_factory: pytest.TempPathFactory, store: str
) -> None:
    provider.script = about
    provider.scripts["live"] = HALF
    with serving(store, tmp_path_factory.mktemp("killed"), provider) as pair:
        who = person(pair.one)
        run = begun(pair.one, "live", who, chain="queue")
        second = pair.two.start("second", who, chain="queue", parent=run)
        os.kill(pair.one.server.workers[-1], signal.SIGKILL)
        assert read(pair.two, second, who).status == "done"
        assert read(pair.two, run, who).end["error"]["code"] == "worker_lost"
    assert told(provider.calls[1]) == ["human: live", "ai: half of ", "human: second"]
    assert len(provider.calls) == 2


# In one process, where the service is too coarse

LIMITS = RunLimits(first=30, silence=30, total=30)


class Halves(Source):
    """A source that says half of its answer, and waits before the rest of it."""

    def __init__(self) -> None:
        self.asked: list[Input] = []
        self.gates: dict[str, threading.Event] = defaultdict(threading.Event)

    def check(self, value: dict[str, Any]) -> None:
        """It takes anything."""

    def stream(self, input: Input) -> Generator[NewEvent, None, None]:
        self.asked.append(input)
        yield "message_start", encode({"id": "m1", "role": "assistant", "node": None})
        yield "chunk", chunk("half ", "m1")
        assert self.gates[input.question].wait(20)
        yield "chunk", chunk(f"of {input.question}", "m1")


class Late(MemoryStore):
    """A memory store that tells of a live run when that has just ended."""

    def __init__(self) -> None:
        super().__init__()
        self.busy: Callable[[str], None] | None = None

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        try:
            return super().create(run, lease_token, lease, conditions)
        except ConversationBusy as busy:
            if self.busy is not None:
                self.busy(busy.run)
            raise


@pytest.fixture
def source() -> Halves:
    return Halves()


@pytest.fixture
def store() -> Late:
    return Late()


@pytest.fixture
def runs(source: Halves, store: Late) -> Iterator[Runs]:
    runs = Runs(store, {"halves": Chain("halves", source)}, RunTimes(LIMITS, 1, 3600))
    yield runs
    for gate in source.gates.values():
        gate.set()
    runs.close()


def start(runs: Runs, question: str, **fields: Any) -> Run:
    run, new = runs.admission.start(
        StartRequest(
            "halves", {"question": question}, principal="session:one", conversation=TALK, **fields
        )
    )
    assert new
    return run


TALK = "a-conversation-of-one"


@pytest.mark.parametrize("word", ["interrupt", "replace", "queue"])
def test_one_that_ends_just_then_has_ended_by_itself(
    runs: Runs, source: Halves, store: Late, word: str
) -> None:
    first = start(runs, "one")

    def end(run: str) -> None:
        assert run == first.id
        source.gates["one"].set()
        assert finish(runs, first)[0] == "done"

    store.busy = end
    source.gates["two"].set()
    second = start(runs, "two", multitask=word)
    assert finish(runs, second)[0] == "done"
    assert second.parent == first.id
    assert source.asked[1].history == [Turn("one", "half of one")]


def test_the_newest_is_the_one_that_was_asked_last_whatever_the_clocks_say(
    runs: Runs, source: Halves, store: Late
) -> None:
    ahead = Run(new_id(), "halves", TALK, None, "session:one", QUESTION, time.time() + 3600)
    assert store.create(ahead, "other", 60) is None
    batch = Batch(ahead.id, "other", 0, [Event(1, "end", encode({"status": "done"}))], "done")
    assert store.append([batch]) == [True]
    source.gates["two"].set()
    source.gates["three"].set()
    second = start(runs, "two")
    assert finish(runs, second)[0] == "done"
    third = start(runs, "three")
    assert (second.parent, third.parent) == (ahead.id, second.id)
    assert finish(runs, third)[0] == "done"


def test_a_queue_keeps_its_order_whatever_the_clocks_say(
    runs: Runs, source: Halves, store: Late
) -> None:
    ahead = Run(new_id(), "halves", TALK, None, "session:one", QUESTION, time.time() + 3600)
    assert store.create(ahead, "other", 60) is None
    for question in ("two", "three"):
        source.gates[question].set()
    queued = [
        start(runs, question, parent=None, multitask="queue") for question in ("two", "three")
    ]
    until = time.monotonic() + 5
    while (
        min(runs.get(run.id, run.principal).seq for run in queued) < 1
    ):  # they are there, and wait
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not source.asked
    batch = Batch(ahead.id, "other", 0, [Event(1, "end", encode({"status": "done"}))], "done")
    assert store.append([batch]) == [True]
    for run in queued:
        assert finish(runs, run)[0] == "done"
    assert [input.question for input in source.asked] == ["two", "three"]


def test_one_that_is_removed_while_it_is_live_ends_for_its_readers(
    runs: Runs, source: Halves, store: Late
) -> None:
    """As when a conversation is removed in the moment in which it is asked something."""
    run = start(runs, "one")
    reader = runs.read(Cursor(run.id, 0), run.principal)
    assert reader is not None
    until = time.monotonic() + 20
    assert store.delete_conversation(run.principal, run.conversation)
    events: list[Event] = []
    while not events or events[-1].type != "end":
        assert time.monotonic() < until, events
        shared = reader.take()
        if shared is None:
            reader.wait(1)
        else:
            events += shared.events
    reader.close()
    assert events[-1].value()["status"] == "cancelled"
    while runs.live_run_count:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_waits_for_one_that_is_removed_begins(runs: Runs, source: Halves, store: Late) -> None:
    other = Run(new_id(), "halves", new_id(), None, "", QUESTION, time.time())
    assert store.create(other, "other", 60) is None
    source.gates["two"].set()
    run, _ = runs.admission.start(
        StartRequest("halves", {"question": "two"}, principal="session:one", parent=other.id)
    )
    assert store.delete_conversation(other.principal, other.conversation)
    assert finish(runs, run)[0] == "done"
    assert source.asked[0].history == []


QUESTION = '{"question":"one"}'
