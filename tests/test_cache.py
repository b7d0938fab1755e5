"""Answers asked twice: read again, shared while they are made, and never somebody else's."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from flask_stream.engine.chain import Chain
from flask_stream.engine.maintenance import RunTimes
from flask_stream.engine.runner import RunLimits
from flask_stream.engine.runs import Runs
from flask_stream.engine.start_request import StartRequest
from flask_stream.errors import BadRequest, Conflict, StoreError
from flask_stream.events import NewEvent, chunk, encode
from flask_stream.sources.base import Input, Source
from flask_stream.stores.base import Run
from flask_stream.stores.memory import MemoryStore

from .people import NOBODY, Sent, refused
from .provider import Provider, Script
from .talks import (
    BRIEF,
    HALF,
    STORES,
    Answer,
    Pair,
    ask,
    at_once,
    begun,
    conversation,
    conversation_of,
    described,
    finish,
    person,
    read,
    serving,
    stop,
    told,
    tree,
)


@pytest.fixture(scope="module", params=["memory", *STORES])
def _pair(
    request: pytest.FixtureRequest, _provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with serving(request.param, tmp_path_factory.mktemp("cache"), _provider) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair, provider: Provider) -> Pair:
    """Where no two answers are the same."""
    provider.script = lambda _: Script(["answer ", f"{len(provider.calls)}"])
    return _pair


@pytest.fixture
def who(pair: Pair) -> Sent:
    return person(pair.one)


def calls(pair: Pair) -> int:
    return len(pair.provider.calls)


# Read again


def test_the_same_question_is_answered_once(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "q", who, chain="cached")
    second = ask(pair.two, "q", who, chain="cached")
    assert calls(pair) == 1
    assert (first.text, first.cached) == ("answer 1", False)
    assert (second.text, second.cached) == ("answer 1", True)
    assert (first.status, second.status) == ("done", "done")
    # A run of its own, in a conversation of its own, that has cost nothing.
    assert second.run != first.run
    assert second.start["run"] == second.run
    assert second.start["conversation"] != first.start["conversation"]
    assert first.types == ["start", "message_start", "chunk", "usage", "end"]
    assert second.types == ["start", "message_start", "chunk", "custom", "end"]
    assert described(pair.one, second.run, who)["status"] == "done"
    assert read(pair.one, second.run, who).events == second.events


def test_it_ends_for_the_same_reason(pair: Pair, who: Sent, provider: Provider) -> None:
    provider.script = Script(["cut"], finish_reason="length")
    ends = [ask(pair.one, "q", who, chain="cached").events[-1] for _ in range(2)]
    assert [json.loads(end.data)["finish_reason"] for end in ends] == ["length", "length"]


def test_it_is_a_stream_as_any_other(pair: Pair, who: Sent) -> None:
    ask(pair.one, "q", who, chain="cached")
    with pair.two.listen("q", who, chain="cached", format="text") as stream:
        events = list(stream.events())
    assert "".join(event.data for event in events if event.type == "message") == "answer 1"
    assert events[-1].type == "end"
    assert calls(pair) == 1


def test_a_conversation_goes_on_from_it(pair: Pair, who: Sent) -> None:
    ask(pair.one, "q", who, chain="cached")
    again = ask(pair.one, "q", who, chain="cached")
    talk = again.start["conversation"]
    ask(pair.two, "next", who, chain="cached", conversation=talk)
    assert told(pair.provider.calls[1]) == ["human: q", "ai: answer 1", "human: next"]
    assert tree(pair.one, talk, who) == [("q", None, "done"), ("next", "q", "done")]


# Shared while it is made


def test_the_same_at_the_same_moment_shares_one_call(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["q"] = HALF
    asks = [partial(pair.turn(n).ask, "q", who, chain="cached") for n in range(6)]
    runs = [answer.json()["run"] for answer in at_once(*asks)]
    assert pair.provider.wait_calls(1)
    for run in runs:  # all of them have come as far as the one that asks
        with pair.two.follow(run, who) as stream:
            assert any("half of " in event.data for event in stream.events())
    assert calls(pair) == 1
    pair.provider.release()
    answers = [read(pair.one, run, who) for run in runs]
    assert {answer.text for answer in answers} == {"half of an answer"}
    assert {answer.status for answer in answers} == {"done"}
    assert sorted(answer.cached for answer in answers) == [False] + [True] * 5
    assert calls(pair) == 1


def test_each_has_a_stop_of_its_own(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["q"] = HALF
    leader = begun(pair.one, "q", who, chain="cached")
    follower = begun(pair.two, "q", who, chain="cached")
    assert stop(pair.one, follower, who).json()["status"] == "cancelled"
    assert described(pair.two, leader, who)["status"] == "running"
    assert read(pair.one, follower, who).text == "half of "
    pair.provider.release()
    assert read(pair.two, leader, who).text == "half of an answer"
    # The one that was stopped has spoilt nothing.
    assert ask(pair.two, "q", who, chain="cached").cached
    assert calls(pair) == 1


@pytest.mark.parametrize("how", ["stopped", "removed", "failed"])
def test_who_follows_one_that_ends_badly_asks_for_itself(pair: Pair, who: Sent, how: str) -> None:
    pair.provider.scripts["q"] = replace(HALF, fault="rst", after=1) if how == "failed" else HALF
    leader = begun(pair.one, "q", who, chain="cached")
    follower = begun(pair.two, "q", who, chain="cached")
    assert calls(pair) == 1
    del pair.provider.scripts["q"]
    if how == "stopped":
        assert stop(pair.two, leader, who).json()["status"] == "cancelled"
    elif how == "removed":
        talk = conversation_of(pair.one, leader, who)
        assert conversation(pair.one, "DELETE", talk, who).status == 204
    else:
        pair.provider.release()
    answer = read(pair.two, follower, who)
    assert answer.types == [
        "start",
        "message_start",
        "chunk",
        "reset",
        "message_start",
        *answer.types[5:],
    ]
    assert (answer.text, answer.status, answer.cached) == ("answer 2", "done", False)
    assert calls(pair) == 2
    if how == "removed":
        refused(pair.two.status(leader, who), 404, "run")
    else:
        bad = "failed" if how == "failed" else "cancelled"
        assert read(pair.one, leader, who).status == bad


def test_of_many_that_read_one_that_is_stopped_one_asks(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["q"] = HALF
    leader = begun(pair.one, "q", who, chain="cached")
    followers = [begun(pair.turn(n), "q", who, chain="cached") for n in range(4)]
    del pair.provider.scripts["q"]
    assert stop(pair.two, leader, who).json()["status"] == "cancelled"
    answers = [read(pair.two, run, who) for run in followers]
    assert {(answer.text, answer.status) for answer in answers} == {("answer 2", "done")}
    assert sorted(answer.cached for answer in answers) == [False, True, True, True]
    assert calls(pair) == 2


# Never


@pytest.mark.parametrize("how", ["stopped", "failed", "refused"])
def test_what_has_ended_badly_is_not_read_again(pair: Pair, who: Sent, how: str) -> None:
    if how == "refused":
        pair.provider.scripts["q"] = Script(status=500)
        assert ask(pair.one, "q", who, chain="cached").status == "failed"
    else:
        stopped = how == "stopped"
        pair.provider.scripts["q"] = HALF if stopped else replace(HALF, fault="rst", after=1)
        run = begun(pair.one, "q", who, chain="cached")
        if stopped:
            stop(pair.two, run, who)
        else:
            pair.provider.release()
        assert read(pair.one, run, who).status == ("cancelled" if stopped else "failed")
    del pair.provider.scripts["q"]
    answer = ask(pair.two, "q", who, chain="cached")
    assert (answer.text, answer.status, answer.cached) == ("answer 2", "done", False)
    assert ask(pair.one, "q", who, chain="cached").cached
    assert calls(pair) == 2


def test_nothing_is_kept_where_nothing_is_said_of_it(pair: Pair, who: Sent) -> None:
    assert [ask(pair.one, "q", who).cached for _ in range(2)] == [False, False]
    assert calls(pair) == 2


def test_no_answer_crosses_principals(pair: Pair, who: Sent) -> None:
    ask(pair.one, "q", who, chain="cached")
    assert ask(pair.one, "q", person(pair.one), chain="cached").text == "answer 2"
    # Of those whom nobody knows, each may be another, though they come from one address.
    assert ask(pair.one, "q", NOBODY, chain="cached").text == "answer 3"
    assert ask(pair.two, "q", NOBODY, chain="cached").text == "answer 4"
    assert calls(pair) == 4


def test_neither_does_one_that_is_under_way(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["q"] = HALF
    runs = [(begun(pair.one, "q", one, chain="cached"), one) for one in (who, person(pair.one))]
    assert calls(pair) == 2
    pair.provider.release()
    assert [read(pair.two, run, one).cached for run, one in runs] == [False, False]


@pytest.mark.parametrize("live", [True, False])
def test_what_is_shared_shows_nothing_of_the_other(pair: Pair, who: Sent, live: bool) -> None:
    question = f"shared, live={live}, {person(pair.one)}"  # one that no other store's test has
    pair.provider.scripts[question] = HALF
    leader = begun(pair.one, question, who, chain="shared")
    talk = conversation_of(pair.one, leader, who)
    if not live:
        pair.provider.release()
        read(pair.one, leader, who)
    others = [person(pair.two), NOBODY]
    runs = [begun(pair.two, question, other, chain="shared") for other in others]
    pair.provider.release()
    for run, other in zip(runs, others, strict=True):
        with pair.one.follow(run, other) as stream:
            answer = Answer(run, list(stream.events(20)))
            assert leader not in stream.received.decode()
            assert talk not in stream.received.decode()
        assert (answer.text, answer.status) == ("half of an answer", "done")
        assert answer.cached
        status = pair.two.status(run, other)
        assert leader not in status.body.decode()
        assert talk not in status.body.decode()
        refused(pair.one.status(leader, other), 404, "run")
        refused(conversation(pair.one, "GET", talk, other), 404, "conversation")
    refused(pair.one.status(runs[0], who), 404, "run")
    assert calls(pair) == 1


# Another question


def test_after_another_history_it_is_another_question(pair: Pair, who: Sent) -> None:
    def after(first: str) -> Answer:
        begin = ask(pair.one, first, who, chain="cached")
        return ask(pair.two, "q", who, chain="cached", parent=begin.run)

    assert [after("a").cached, after("b").cached] == [False, False]
    assert not ask(pair.one, "q", who, chain="cached").cached
    assert calls(pair) == 5
    # And after the same, in another conversation, the same.
    again = after("a")
    assert (again.text, again.cached) == ("answer 2", True)
    assert calls(pair) == 5


def test_another_text_is_another_question(pair: Pair, who: Sent) -> None:
    for question in ("q", "Q", "q ", "q?"):
        assert not ask(pair.one, question, who, chain="cached").cached
    assert calls(pair) == 4


def test_another_chain_answers_for_itself(pair: Pair, who: Sent) -> None:
    assert ask(pair.one, "q", who, chain="cached").text == "answer 1"
    assert ask(pair.one, "q", who, chain="other").text == "answer 2"
    assert ask(pair.one, "q", who, chain="other").cached


@pytest.mark.parametrize("store", STORES)
def test_another_version_answers_for_itself(
    provider: Provider, tmp_path_factory: pytest.TempPathFactory, store: str
) -> None:
    provider.script = lambda _: Script(["answer ", f"{len(provider.calls)}"])
    with serving(store, tmp_path_factory.mktemp("versions"), provider, two="2") as pair:
        who = person(pair.one)
        asked = [ask(site, "q", who, chain="cached") for site in (pair.one, pair.two) * 2]
    assert [answer.text for answer in asked] == ["answer 1", "answer 2"] * 2
    assert [answer.cached for answer in asked] == [False, False, True, True]


def test_what_follows_an_unfinished_answer_is_not_taken_for_another(pair: Pair, who: Sent) -> None:
    """While it waits, its history looks as after an answer that had no text at all."""
    pair.provider.scripts["live"] = Script(["an answer"], stall=0)
    live = pair.one.start("live", who, chain="waits")
    assert pair.provider.wait_calls(1)
    queued = pair.two.start("q", who, chain="waits", parent=live)
    pair.provider.release()
    assert read(pair.one, queued, who).text == "answer 2"
    assert told(pair.provider.calls[1]) == ["human: live", "ai: an answer", "human: q"]
    pair.provider.scripts["live"] = Script(status=500)
    empty = ask(pair.one, "live", who)
    assert (empty.text, empty.status) == ("", "failed")
    after = ask(pair.two, "q", who, chain="waits", parent=empty.run)
    assert (after.text, after.cached) == ("answer 4", False)


# For a while


def test_it_is_kept_for_its_seconds(pair: Pair, who: Sent) -> None:
    begin = time.monotonic()
    ask(pair.one, "q", who, chain="brief")
    asked = time.monotonic()
    second = ask(pair.two, "q", who, chain="brief")
    # Only if the machine was so slow may it have passed already.
    assert second.cached or time.monotonic() - begin > BRIEF
    while (answer := ask(pair.two, "q", who, chain="brief")).cached:
        assert time.monotonic() - asked < BRIEF + 10
    assert time.monotonic() - begin > BRIEF
    assert answer.text == f"answer {calls(pair)}"


def test_it_goes_with_its_conversation(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "q", who, chain="cached")
    assert conversation(pair.one, "DELETE", first.start["conversation"], who).status == 204
    second = ask(pair.two, "q", who, chain="cached")
    assert (second.text, second.cached) == ("answer 2", False)
    assert ask(pair.one, "q", who, chain="cached").text == "answer 2"


# The worker that asks


@pytest.mark.parametrize("chain", ["cached", "again"])
@pytest.mark.parametrize("store", STORES)
def test_who_follows_a_killed_worker_has_a_whole_answer(
    provider: Provider, tmp_path_factory: pytest.TempPathFactory, store: str, chain: str
) -> None:
    """One further call, whether the one that leads begins anew or the one that follows."""
    provider.script = HALF
    with serving(store, tmp_path_factory.mktemp("killed"), provider) as pair:
        who = person(pair.one)
        leader = begun(pair.one, "q", who, chain=chain)
        follower = begun(pair.two, "q", who, chain=chain)
        provider.script = Script(["whole"])
        os.kill(pair.one.server.workers[-1], signal.SIGKILL)
        answer = read(pair.two, follower, who)
        assert (answer.text, answer.status) == ("whole", "done")
        assert answer.types.count("reset") == 1
        first = read(pair.two, leader, who)
        if chain == "again":
            assert (first.text, first.status) == ("whole", "done")
        else:
            assert first.end["error"]["code"] == "worker_lost"
            assert first.text == "half of "
        assert len(provider.calls) == 2
        # What was lost is not read again, and what was made anew is.
        again = ask(pair.two, "q", who, chain=chain)
        assert (again.text, again.cached) == ("whole", chain == "again")


# In one process, where the service is too coarse

LIMITS = RunLimits(first=30, silence=30, total=30)


class Asks(Source):
    """A source that asks a person whether to go on, in the first so many of its runs."""

    def __init__(self) -> None:
        self.asked: list[Input] = []
        self.open = threading.Event()
        self.open.set()
        self.questions = 99
        self.several = False

    @property
    def durable(self) -> bool:
        return True

    def check(self, value: dict[str, Any]) -> None:
        """It takes anything."""

    def stream(self, input: Input) -> Generator[NewEvent, None, None]:
        self.asked.append(input)
        number = len(self.asked)
        yield "message_start", encode({"id": "m1", "role": "assistant", "node": None})
        yield "chunk", chunk(f"{number} ", "m1")
        self.open.wait(20)
        if number <= self.questions and "resume" not in input.value:
            yield "interrupt", encode({"id": f"i{number}", "value": "May I?"})
            if self.several:
                yield "interrupt", encode({"id": f"j{number}", "value": "May she?"})


class Forgetful(MemoryStore):
    """A memory store that claims nothing while it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def claim(self, key: str, value: str, ttl: float) -> str:
        if self.away:
            raise StoreError("away")
        return super().claim(key, value, ttl)


@pytest.fixture
def source() -> Asks:
    return Asks()


@pytest.fixture
def store() -> Forgetful:
    return Forgetful()


@pytest.fixture
def runs(source: Asks, store: Forgetful) -> Iterator[Runs]:
    chains = {"asks": Chain("asks", source, cache=60), "other": Chain("other", source)}
    runs = Runs(store, chains, RunTimes(LIMITS, 30, 3600))
    yield runs
    source.open.set()
    runs.close()


def start(runs: Runs, value: dict[str, Any], **fields: Any) -> Run:
    run, new = runs.admission.start(StartRequest("asks", value, principal="session:one", **fields))
    assert new
    return run


QUESTION = {"question": "q"}


def test_one_that_asks_a_person_is_not_read_again(runs: Runs, source: Asks) -> None:
    statuses = [finish(runs, start(runs, QUESTION))[0] for _ in range(2)]
    assert statuses == ["interrupted", "interrupted"]
    assert len(source.asked) == 2


def test_an_answer_goes_to_what_was_asked(runs: Runs, source: Asks) -> None:
    parent = start(runs, QUESTION)
    assert finish(runs, parent)[0] == "interrupted"
    with pytest.raises(Conflict):
        runs.admission.start(
            StartRequest("other", {"resume": "yes"}, principal="session:one", parent=parent.id)
        )
    source.several = True
    parent = start(runs, QUESTION)
    events = finish(runs, parent)[1]
    ids = [event.value()["id"] for event in events if event.type == "interrupt"]
    assert len(ids) == 2
    for answer in ("yes", {}, {"i9": "yes"}, {ids[0]: "yes", "x": 1}, [ids[0]]):
        with pytest.raises(BadRequest) as told:
            start(runs, {"resume": answer}, parent=parent.id)
        assert told.value.field == "resume"
    assert finish(runs, start(runs, {"resume": {ids[1]: "yes"}}, parent=parent.id))[0] == "done"


def test_what_was_stopped_goes_on_with_no_answer(runs: Runs, source: Asks) -> None:
    source.open.clear()
    parent = start(runs, QUESTION)
    runs.cancel(parent.id, 10, parent.principal)
    source.open.set()
    with pytest.raises(Conflict):
        start(runs, {"resume": "yes"}, parent=parent.id)
    assert finish(runs, start(runs, {"resume": None}, parent=parent.id))[0] == "done"


def test_what_a_person_says_is_for_that_run_alone(runs: Runs, source: Asks) -> None:
    for number in (1, 2):
        parent = start(runs, QUESTION)
        assert finish(runs, parent)[0] == "interrupted"
        answer = start(runs, {"resume": "yes"}, parent=parent.id)
        status, events = finish(runs, answer)
        assert (status, len(source.asked)) == ("done", 2 * number)
        assert source.asked[-1].resume == "yes"
        assert not [event for event in events if event.type == "custom"]
        # Both are one turn.
        assert [turn.question for turn in source.asked[-1].history] == ["q"]


def test_who_follows_one_that_asks_a_person_asks_by_itself(runs: Runs, source: Asks) -> None:
    source.open.clear()
    leader, follower = start(runs, QUESTION), start(runs, QUESTION)
    source.open.set()
    assert [finish(runs, run)[0] for run in (leader, follower)] == ["interrupted"] * 2
    _, events = finish(runs, follower)
    told = [event for event in events if event.type == "interrupt"]
    assert [json.loads(event.data)["id"] for event in told] == ["i2"]


def test_whether_it_has_asked_is_its_own_affair(runs: Runs, source: Asks) -> None:
    source.questions = 1
    source.open.clear()
    leader, follower = start(runs, QUESTION), start(runs, QUESTION)
    source.open.set()
    assert [finish(runs, run)[0] for run in (leader, follower)] == ["interrupted", "done"]


def test_an_answer_needs_somebody_who_has_asked(runs: Runs, source: Asks) -> None:
    source.questions = 0
    done = start(runs, QUESTION)
    assert finish(runs, done)[0] == "done"
    for parent in (done.id, None, "newest"):
        with pytest.raises(Conflict) as refusal:
            start(runs, {"resume": "yes"}, parent=parent, conversation=done.conversation)
        assert refusal.value.field == "resume"


def test_where_nothing_can_be_looked_up_it_is_asked(
    runs: Runs, source: Asks, store: Forgetful
) -> None:
    source.questions = 0
    finish(runs, start(runs, QUESTION))
    store.away = True
    run = start(runs, QUESTION)
    assert finish(runs, run)[0] == "done"
    assert len(source.asked) == 2
    store.away = False
    assert [e.type for e in finish(runs, start(runs, QUESTION))[1]][-2:] == ["custom", "end"]
    assert len(source.asked) == 2


def test_one_that_is_no_longer_kept_is_asked_anew(
    runs: Runs, source: Asks, store: Forgetful
) -> None:
    source.questions = 0
    run = start(runs, QUESTION)
    finish(runs, run)
    assert len(store.purge(-1, 10)) == 1
    assert store.get(run.id) is None
    finish(runs, start(runs, QUESTION))
    assert len(source.asked) == 2
