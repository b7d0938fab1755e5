"""Conversations: trees of one principal's runs, on the real service, and what the model hears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from flask_stream.events import new_id

from .people import NOBODY, NOWHERE, Sent, refused
from .provider import Provider, Script
from .sse import Response, request
from .talks import (
    Pair,
    about,
    ask,
    at_once,
    conversation,
    conversation_of,
    described,
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
    with serving(request.param, tmp_path_factory.mktemp("talks"), _provider) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair, provider: Provider) -> Pair:
    provider.script = about
    return _pair


@pytest.fixture
def who(pair: Pair) -> Sent:
    """Somebody who has asked nothing yet."""
    return person(pair.one)


def page(pair: Pair, who: Sent, query: str = "") -> dict[str, Any]:
    """A page of somebody's conversations."""
    answer = request("GET", f"{pair.two.url}/conversations{query}", headers=who)
    assert answer.status == 200, answer.body
    listed: dict[str, Any] = answer.json()
    return listed


def titles(pair: Pair, who: Sent, query: str = "") -> list[str]:
    return [one["title"] for one in page(pair, who, query)["conversations"]]


# Continue


def test_the_next_question_follows_the_newest_run(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "one", who)
    talk = conversation_of(pair.one, first.run, who)
    second = ask(pair.two, "two", who, conversation=talk)
    third = ask(pair.one, "three", who, conversation=talk)
    assert [told(call) for call in pair.provider.calls] == [
        ["human: one"],
        ["human: one", "ai: about one", "human: two"],
        ["human: one", "ai: about one", "human: two", "ai: about two", "human: three"],
    ]
    assert first.start["parent"] is None
    assert (second.start["parent"], third.start["parent"]) == (first.run, second.run)
    assert second.start["conversation"] == third.start["conversation"] == talk
    assert described(pair.two, third.run, who)["parent"] == second.run
    for site in (pair.one, pair.two):
        assert tree(site, talk, who) == [
            ("one", None, "done"),
            ("two", "one", "done"),
            ("three", "two", "done"),
        ]


def test_so_does_a_page_that_only_streams(pair: Pair, who: Sent) -> None:
    talk = new_id()
    for question in ("one", "two"):
        with pair.one.listen(question, who, conversation=talk) as stream:
            list(stream.events())
    assert told(pair.provider.calls[-1]) == ["human: one", "ai: about one", "human: two"]
    assert tree(pair.two, talk, who) == [("one", None, "done"), ("two", "one", "done")]


def test_anyone_follows_a_run_by_its_own_id_only(pair: Pair) -> None:
    first = ask(pair.one, "one")
    talk = first.start["conversation"]
    alone = ask(pair.two, "two", conversation=talk)
    assert alone.start["parent"] is None
    assert told(pair.provider.calls[-1]) == ["human: two"]
    # Whoever knows that id may, from any address, and without knowing the conversation's.
    after = ask(pair.two, "three", parent=first.run)
    assert (after.start["parent"], after.start["conversation"]) == (first.run, talk)
    assert told(pair.provider.calls[-1]) == ["human: one", "ai: about one", "human: three"]


def test_somebody_may_go_on_with_what_anyone_has_begun(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "one")
    second = ask(pair.two, "two", who, parent=first.run)
    assert told(pair.provider.calls[-1]) == ["human: one", "ai: about one", "human: two"]
    # What they add is theirs alone.
    refused(pair.one.status(second.run), 404, "run")
    refused(pair.one.ask("three", parent=second.run), 404, "parent")
    talk = second.start["conversation"]
    answer = conversation(pair.one, "GET", talk, who).json()
    assert [(run["run"], run["parent"]) for run in answer["runs"]] == [(second.run, first.run)]


def test_what_was_cut_off_is_told_as_far_as_it_went(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["one"] = Script(["half ", "of ", "it"], stall=2)
    first = pair.one.start("one", who)
    assert pair.provider.wait_calls(1)
    with pair.two.follow(first, who) as stream:
        while (event := stream.next_event()) is not None and "of " not in event.data:
            pass
        stop(pair.two, first, who)
    talk = conversation_of(pair.one, first, who)
    ask(pair.two, "two", who, conversation=talk)
    assert told(pair.provider.calls[-1]) == ["human: one", "ai: half of ", "human: two"]
    assert tree(pair.one, talk, who) == [("one", None, "cancelled"), ("two", "one", "done")]


# Branches


def test_an_earlier_question_is_edited(pair: Pair, who: Sent) -> None:
    one = ask(pair.one, "one", who)
    talk = conversation_of(pair.one, one.run, who)
    ask(pair.one, "two", who, conversation=talk)
    three = ask(pair.one, "three", who, conversation=talk)

    edited = ask(pair.two, "TWO", who, parent=one.run)
    assert edited.start["conversation"] == talk
    assert told(pair.provider.calls[-1]) == ["human: one", "ai: about one", "human: TWO"]
    # The newest is that of the new branch; the old one is there by its id.
    ask(pair.one, "THREE", who, conversation=talk)
    assert told(pair.provider.calls[-1])[2:] == ["human: TWO", "ai: about TWO", "human: THREE"]
    ask(pair.two, "four", who, conversation=talk, parent=three.run)
    assert told(pair.provider.calls[-1]) == [
        *("human: one", "ai: about one", "human: two", "ai: about two"),
        *("human: three", "ai: about three", "human: four"),
    ]
    assert tree(pair.two, talk, who) == [
        ("one", None, "done"),
        ("two", "one", "done"),
        ("three", "two", "done"),
        ("TWO", "one", "done"),
        ("THREE", "TWO", "done"),
        ("four", "three", "done"),
    ]


def test_the_first_question_is_edited(pair: Pair, who: Sent) -> None:
    talk = conversation_of(pair.one, ask(pair.one, "one", who).run, who)
    ask(pair.one, "two", who, conversation=talk)
    again = ask(pair.two, "ONE", who, conversation=talk, parent=None)
    assert told(pair.provider.calls[-1]) == ["human: ONE"]
    assert again.start["parent"] is None
    # A query has no null.
    with pair.one.listen("One", who, conversation=talk, parent="") as stream:
        list(stream.events())
    assert told(pair.provider.calls[-1]) == ["human: One"]
    assert tree(pair.one, talk, who) == [
        ("one", None, "done"),
        ("two", "one", "done"),
        ("ONE", None, "done"),
        ("One", None, "done"),
    ]
    assert titles(pair, who) == ["one"]


def test_an_answer_is_made_anew(pair: Pair, who: Sent) -> None:
    one = ask(pair.one, "one", who)
    talk = conversation_of(pair.one, one.run, who)
    two = ask(pair.one, "two", who, conversation=talk)
    pair.provider.script = Script(["another"])
    anew = ask(pair.two, "two", who, parent=one.run)
    assert anew.run != two.run
    assert (read(pair.one, two.run, who).text, anew.text) == ("about two", "another")
    assert told(pair.provider.calls[-1]) == told(pair.provider.calls[-2])
    ask(pair.one, "three", who, conversation=talk)
    assert told(pair.provider.calls[-1])[2:] == ["human: two", "ai: another", "human: three"]
    assert tree(pair.two, talk, who) == [
        ("one", None, "done"),
        ("two", "one", "done"),
        ("two", "one", "done"),
        ("three", "two", "done"),
    ]


# Who may follow what


def test_what_cannot_be_followed_is_refused_and_nothing_is_stored(pair: Pair, who: Sent) -> None:
    theirs = ask(pair.one, "theirs", person(pair.two))
    mine = ask(pair.one, "mine", who)
    others = pair.provider.calls.copy()
    unknown = pair.one.ask("?", who, parent=NOWHERE)
    refused(unknown, 404, "parent")
    # Who asks for somebody else's learns no more than that.
    assert pair.two.ask("?", who, parent=theirs.run).body == unknown.body
    assert pair.two.ask("?", parent=mine.run).body == unknown.body
    refused(pair.one.ask("?", who, parent=mine.run, conversation=NOWHERE), 400, "conversation")
    for wrong in ("short", "with spaces in it, and long", "x" * 65, ""):
        answer = pair.one.ask("?", who, conversation=wrong)
        refused(answer, 400, "conversation")
        if wrong:
            refused(pair.one.ask("?", who, parent=wrong), 400, "parent")
    refused(pair.one.ask("?", who, parent=7), 400, "parent")
    refused(pair.one.ask("?", who, conversation=["x"]), 400, "conversation")
    assert pair.provider.calls == others
    assert titles(pair, who) == ["mine"]


def test_an_id_that_somebody_else_has_is_another_conversation(pair: Pair, who: Sent) -> None:
    other = person(pair.two)
    talk = conversation_of(pair.one, ask(pair.one, "mine", who).run, who)
    ask(pair.two, "theirs", other, conversation=talk)
    assert told(pair.provider.calls[-1]) == ["human: theirs"]
    assert tree(pair.one, talk, who) == [("mine", None, "done")]
    assert tree(pair.one, talk, other) == [("theirs", None, "done")]
    assert conversation(pair.one, "DELETE", talk, other).status == 204
    assert tree(pair.two, talk, who) == [("mine", None, "done")]
    refused(conversation(pair.two, "GET", talk, other), 404, "conversation")


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_anothers_conversation_is_as_one_that_is_not(pair: Pair, who: Sent, method: str) -> None:
    talk = conversation_of(pair.one, ask(pair.one, "mine", who).run, who)
    body = {"title": "stolen"} if method == "PATCH" else None

    def answer(id: str, who: Sent) -> Response:
        return conversation(pair.two, method, id, who, body)

    unknown = answer(NOWHERE, who)
    refused(unknown, 404, "conversation")
    assert answer(talk, person(pair.two)).body == unknown.body
    assert answer(talk, NOBODY).body == unknown.body
    assert answer("x", who).body == unknown.body
    assert titles(pair, who) == ["mine"]


def test_anyone_has_no_conversations(pair: Pair) -> None:
    first = ask(pair.one, "one")
    talk = first.start["conversation"]
    assert page(pair, NOBODY) == {"conversations": [], "next": None}
    for method in ("GET", "DELETE"):
        refused(conversation(pair.one, method, talk, NOBODY), 404, "conversation")
    assert pair.two.status(first.run).status == 200


# Rename


def test_a_conversation_is_called_as_it_begins_until_it_is_renamed(pair: Pair, who: Sent) -> None:
    long = "A question\nof\tmany words, " + "and so on " * 20
    talk = conversation_of(pair.one, ask(pair.one, long, who).run, who)
    named = page(pair, who)["conversations"][0]
    assert named["title"] == " ".join(long.split())[:79] + "…"
    answer = conversation(pair.two, "PATCH", talk, who, {"title": "  What \n we  said \U0001f600"})
    assert answer.status == 200
    assert answer.json() == named | {"title": "What we said \U0001f600"}
    ask(pair.one, "two", who, conversation=talk)
    assert conversation(pair.one, "GET", talk, who).json()["title"] == "What we said \U0001f600"
    assert titles(pair, who) == ["What we said \U0001f600"]


@pytest.mark.parametrize(
    "body",
    [{}, {"title": ""}, {"title": " \n"}, {"title": "x" * 201}, {"title": 7}, {"title": None}],
)
def test_what_is_no_title(pair: Pair, who: Sent, body: dict[str, Any]) -> None:
    talk = conversation_of(pair.one, ask(pair.one, "mine", who).run, who)
    refused(conversation(pair.two, "PATCH", talk, who, body), 400, "title")
    refused(conversation(pair.two, "PATCH", talk, who, {"title": "x", "id": talk}), 400, "id")
    assert titles(pair, who) == ["mine"]


def test_a_title_of_any_characters_is_kept_or_refused(pair: Pair, who: Sent) -> None:
    talk = conversation_of(pair.one, ask(pair.one, "mine", who).run, who)
    for title in ("\ud800", "a\0b", "x" * 200, "\u202egnp.exe", "<b>&amp;"):
        answer = conversation(pair.two, "PATCH", talk, who, {"title": title})
        if answer.status == 400:
            refused(answer, 400, "title")
        else:
            assert answer.status == 200, (title, answer.body)
            assert titles(pair, who) == [answer.json()["title"]]


# List


def test_the_newest_come_first_and_pages_have_no_gap_and_no_double(pair: Pair, who: Sent) -> None:
    for number in range(7):
        ask(pair.one, f"old {number}", who)
    seen: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        query = f"?limit=3&before={quote(after)}" if after else "?limit=3"
        listed = page(pair, who, query)
        seen += [one["title"] for one in listed["conversations"]]
        after, pages = listed["next"], pages + 1
        # Meanwhile somebody goes on asking.
        ask(pair.two, f"new {pages}", who)
    assert seen == [f"old {number}" for number in reversed(range(7))]
    assert pages == 3
    assert titles(pair, who, "?limit=3") == ["new 3", "new 2", "new 1"]


def test_whole_pages_end_with_none_to_follow(pair: Pair, who: Sent) -> None:
    assert page(pair, who) == {"conversations": [], "next": None}
    for number in range(4):
        ask(pair.one, f"{number}", who)
    first = page(pair, who, "?limit=2")
    second = page(pair, who, f"?limit=2&before={quote(first['next'])}")
    assert [one["title"] for one in second["conversations"]] == ["1", "0"]
    assert second["next"] is None


def test_what_is_continued_comes_first(pair: Pair, who: Sent) -> None:
    talk = conversation_of(pair.one, ask(pair.one, "one", who).run, who)
    ask(pair.one, "other", who)
    assert titles(pair, who) == ["other", "one"]
    before = page(pair, who)["conversations"][1]
    ask(pair.two, "two", who, conversation=talk)
    after = page(pair, who)["conversations"][0]
    assert titles(pair, who) == ["one", "other"]
    assert (after["id"], after["created"]) == (talk, before["created"])
    assert after["updated"] > before["updated"]
    assert request("GET", pair.one.url + after["url"], headers=who).json()["id"] == talk


def test_those_of_others_are_not_listed(pair: Pair, who: Sent) -> None:
    ask(pair.one, "mine", who)
    ask(pair.one, "theirs", person(pair.two))
    ask(pair.one, "anyone's")
    assert titles(pair, who) == ["mine"]


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "x", "", "9" * 20, "1e1", "٣"])
def test_what_is_no_limit(pair: Pair, who: Sent, limit: str) -> None:
    url = f"{pair.one.url}/conversations?limit={quote(limit)}"
    refused(request("GET", url, headers=who), 400, "limit")


@pytest.mark.parametrize(
    "before",
    ["x", "", "1", f"nan:{NOWHERE}", f"inf:{NOWHERE}", f"-1:{NOWHERE}", "1:", "1:short"],
)
def test_what_is_no_place_in_the_list(pair: Pair, who: Sent, before: str) -> None:
    for someone in (who, NOBODY):
        url = f"{pair.one.url}/conversations?before={quote(before)}"
        refused(request("GET", url, headers=someone), 400, "before")


# Remove


def test_a_conversation_is_removed_with_all_of_it(pair: Pair, who: Sent) -> None:
    first = ask(pair.one, "one", who)
    talk = conversation_of(pair.one, first.run, who)
    second = ask(pair.one, "two", who, conversation=talk)
    ask(pair.one, "another", who)
    assert conversation(pair.two, "DELETE", talk, who).status == 204
    for site in (pair.one, pair.two):
        for run in (first.run, second.run):
            refused(site.status(run, who), 404, "run")
            refused(stop(site, run, who), 404, "run")
            with site.follow(run, who) as stream:
                assert stream.status == 404
        refused(site.ask("?", who, parent=second.run), 404, "parent")
        for method in ("GET", "DELETE"):
            refused(conversation(site, method, talk, who), 404, "conversation")
        refused(conversation(site, "PATCH", talk, who, {"title": "x"}), 404, "conversation")
    assert titles(pair, who) == ["another"]
    # The id may be used again, and knows nothing of before.
    ask(pair.two, "anew", who, conversation=talk)
    assert told(pair.provider.calls[-1]) == ["human: anew"]
    assert tree(pair.one, talk, who) == [("anew", None, "done")]


def test_what_is_live_in_it_is_stopped_and_its_viewers_are_told(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["live"] = Script(["a", "b"], stall=1)
    run = pair.one.start("live", who)
    talk = conversation_of(pair.two, run, who)
    with pair.one.follow(run, who) as here, pair.two.follow(run, who) as there:
        for stream in (here, there):
            while (event := stream.next_event()) is not None and '"a"' not in event.data:
                pass
        assert conversation(pair.two, "DELETE", talk, who).status == 204
        assert pair.provider.calls[0].wait_closed()
        for stream in (here, there):
            last = list(stream.events())[-1]
            assert (last.type, json.loads(last.data)["status"]) == ("end", "cancelled")
    for site in (pair.one, pair.two):
        refused(site.status(run, who), 404, "run")
    assert titles(pair, who) == []


def test_what_waits_in_it_never_begins(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["live"] = Script(["a", "b"], stall=1)
    run = pair.one.start("live", who, chain="queue")
    talk = conversation_of(pair.two, run, who)
    assert pair.provider.wait_calls(1)
    waiting = [pair.two.start(f"later {n}", who, chain="queue", conversation=talk) for n in "12"]
    assert conversation(pair.one, "DELETE", talk, who).status == 204
    assert pair.provider.calls[0].wait_closed()
    for id in waiting:
        refused(pair.two.status(id, who), 404, "run")
    # Everything that was asked for before this one would have been asked by now.
    ask(pair.two, "after", who, chain="queue")
    assert [call.question for call in pair.provider.calls] == ["live", "after"]


def test_removed_twice_at_once(pair: Pair, who: Sent) -> None:
    pair.provider.scripts["live"] = Script(["a", "b"], stall=1)
    run = pair.one.start("live", who)
    talk = conversation_of(pair.one, run, who)
    answers = at_once(
        lambda: conversation(pair.one, "DELETE", talk, who),
        lambda: conversation(pair.two, "DELETE", talk, who),
    )
    assert {answer.status for answer in answers} <= {204, 404}
    assert 204 in {answer.status for answer in answers}
    assert titles(pair, who) == []


# What is sent


@pytest.mark.parametrize(
    "body",
    [{}, {"input": None}, {"input": "x", "resume": "y"}, {"input": "x", "resume": None}],
)
def test_either_a_question_or_an_answer(pair: Pair, who: Sent, body: dict[str, Any]) -> None:
    answer = request("POST", f"{pair.one.url}/runs", json={"chain": "chat"} | body, headers=who)
    refused(answer, 400, "input")
    assert not pair.provider.calls
    assert titles(pair, who) == []


@pytest.mark.parametrize("resume", ["yes", None, {"a": [1]}, False])
def test_an_answer_that_nobody_has_asked_for(pair: Pair, who: Sent, resume: Any) -> None:
    done = ask(pair.one, "one", who)
    talk = conversation_of(pair.one, done.run, who)
    for place in ({}, {"parent": done.run}, {"conversation": talk}, {"parent": None}):
        sent = {"chain": "chat", "resume": resume} | place
        answer = request("POST", f"{pair.two.url}/runs", json=sent, headers=who)
        refused(answer, 409, "resume")
    assert len(pair.provider.calls) == 1
    assert tree(pair.one, talk, who) == [("one", None, "done")]
