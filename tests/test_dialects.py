"""Dialects: events in, bytes out, read again by a parser that was written from the standard."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stream.dialects.base import Dialect
from flask_stream.dialects.native import Native
from flask_stream.dialects.text import Text
from flask_stream.engine.runner import end_data
from flask_stream.errors import ErrorCode
from flask_stream.events import TYPES, Event, chunk, encode

from .sse import Parser, ServerSentEvent

RUN = "0123456789abcdef"
FORGED = "x\n\nevent: end\ndata: forged\nid: 1\n\rretry: 1\r\n\r\n: \ufeff"

#: All of Unicode, and what would mean something on an event stream.
PIECES = st.sampled_from(
    [*"\r\n\0: \ufeff\u2028\x85\x0b", "\r\n", "\n\n", "\ud83d", "\ude00", "id: 1", "event: end"]
)
TEXTS = st.lists(st.lists(st.characters(exclude_categories=[]) | PIECES).map("".join))


def read(dialect: Dialect, *events: Event) -> list[ServerSentEvent]:
    """The events as a client gets them; nothing is left over, and nothing but events is there."""
    parser = Parser()
    found = parser.feed(dialect.frames(RUN, events))
    assert parser.feed(b"\n\n") == []
    assert parser.comments == []
    assert parser.retry is None
    return found


def log(*said: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(seq, type, encode(data)) for seq, (type, data) in enumerate(said, 1)]


def whole(text: str) -> str:
    """The text with halves that meet made one, as JSON and UTF-16 have it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


END = {"status": "done", "finish_reason": "stop", "error": None}

#: Whatever JSON can say, with the texts above in it.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.characters(exclude_categories=[]) | PIECES).map("".join),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(PIECES | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
SAID = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(TYPES[1:-1]), st.dictionaries(st.text(), VALUES, max_size=3)
        ).filter(lambda said: said[0] != "chunk"),
        st.builds(
            lambda content, kind: ("chunk", {"content": content, "message": "m1", "kind": kind}),
            st.lists(st.characters(exclude_categories=[]) | PIECES).map("".join),
            st.sampled_from(["text", "reasoning"]),
        ),
    )
)


def halves_joined(value: Any) -> Any:
    """The value with all of its texts as JSON carries them."""
    return json.loads(json.dumps(value))


def in_pieces(raw: bytes, cuts: list[int]) -> list[ServerSentEvent]:
    """The events as they come over a line that cuts where it likes."""
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    parser = Parser()
    return [e for a, b in itertools.pairwise(places) for e in parser.feed(raw[a:b])]


# Native


def test_native_chunks_have_no_name() -> None:
    frames = Native().frames(RUN, [Event(3, "chunk", chunk("Hi\n", "m1"))])
    data = rb'{"content":"Hi\n","message":"m1","kind":"text"}'
    assert frames == b"id: 0123456789abcdef:3\ndata: " + data + b"\n\n"


@pytest.mark.parametrize("type", [type for type in TYPES if type != "chunk"])
def test_native_names_all_else_by_its_type(type: str) -> None:
    data = {"value": FORGED, "more": [1, None]}
    assert (
        Native()
        .frames(RUN, [Event(7, type, encode(data))])
        .startswith(f"id: {RUN}:7\nevent: {type}\ndata: ".encode())
    )
    (event,) = read(Native(), Event(7, type, encode(data)))
    assert (event.type, event.id) == (type, f"{RUN}:7")
    assert json.loads(event.data) == data


def test_native_keeps_the_logs_order_and_leaves_nothing_out() -> None:
    events = log(*((type, {"n": n}) for n, type in enumerate(TYPES)))
    found = read(Native(), *events)
    assert [json.loads(event.data)["n"] for event in found] == list(range(len(TYPES)))
    assert [event.id for event in found] == [f"{RUN}:{n}" for n in range(1, len(TYPES) + 1)]


def test_an_end_that_was_not_stored_has_no_place() -> None:
    lost = Event(0, "end", end_data("failed", ErrorCode.STORE_ERROR))
    for dialect in (Native(), Text()):
        found = read(dialect, Event(1, "chunk", chunk("a", "m1")), lost)
        assert found[-1].type == "end"
        # The place is still the one of what came before.
        assert {event.id for event in found} == {f"{RUN}:1"}
        assert b"id: " not in dialect.frames(RUN, [lost])


@given(TEXTS)
def test_native_says_exactly_what_was_said(texts: list[str]) -> None:
    events = [Event(seq, "chunk", chunk(text, "m1")) for seq, text in enumerate(texts, 1)]
    found = read(Native(), *events)
    assert [event.type for event in found] == ["message"] * len(texts)
    assert [json.loads(event.data)["content"] for event in found] == [whole(t) for t in texts]
    assert [event.id for event in found] == [f"{RUN}:{seq}" for seq in range(1, len(texts) + 1)]


@given(SAID)
def test_native_says_of_every_event_what_it_is_and_no_more(
    said: list[tuple[str, dict[str, Any]]],
) -> None:
    found = read(Native(), *log(*said))
    types = ["message" if type == "chunk" else type for type, _ in said]
    assert [event.type for event in found] == types
    assert [json.loads(event.data) for event in found] == [halves_joined(data) for _, data in said]
    assert [event.id for event in found] == [f"{RUN}:{n}" for n in range(1, len(said) + 1)]


@given(SAID)
def test_native_is_one_line_of_ascii_for_each_event(said: list[tuple[str, dict[str, Any]]]) -> None:
    frames = Native().frames(RUN, log(*said))
    assert frames.isascii()
    assert b"\r" not in frames
    assert frames.count(b"\n\n") == len(said)
    lines = frames.split(b"\n")
    assert sum(line.startswith(b"data: ") for line in lines) == len(said)
    assert {line.partition(b": ")[0] for line in lines} <= {b"id", b"event", b"data", b""}


# Text


def test_text_is_the_text_alone() -> None:
    frames = Text().frames(RUN, [Event(3, "chunk", chunk("One\n two\r\n", "m1"))])
    assert frames == f"id: {RUN}:3\ndata: One\ndata:  two\ndata: \n\n".encode()


@pytest.mark.parametrize("type", [type for type in TYPES if type not in ("chunk", "reset", "end")])
def test_text_says_nothing_of_what_is_no_text(type: str) -> None:
    assert Text().frames(RUN, log((type, {"value": FORGED, "content": "secret"}))) == b""


def test_text_leaves_reasoning_out() -> None:
    assert Text().frames(RUN, [Event(3, "chunk", chunk("Hm.", "m1", "reasoning"))]) == b""


def test_text_ends_with_the_status() -> None:
    (end,) = read(Text(), Event(4, "end", encode(END)))
    assert (end.type, end.data, end.id) == ("end", "done", f"{RUN}:4")


def test_text_tells_a_sentence_before_a_bad_end() -> None:
    chunks = Event(3, "chunk", chunk("He", "m1"))
    found = read(Text(), chunks, Event(4, "end", end_data("failed", ErrorCode.TIMEOUT)))
    assert [(event.type, event.data) for event in found] == [
        ("message", "He"),
        ("error", "The model took too long to answer."),
        ("end", "failed"),
    ]
    # Who loses the connection between the two comes back and gets both.
    assert [event.id for event in found] == [f"{RUN}:3", f"{RUN}:3", f"{RUN}:4"]


def test_text_says_when_all_is_to_be_forgotten() -> None:
    reset = Event(4, "reset", encode({"attempt": 2, "reason": "worker_lost"}))
    (event,) = read(Text(), reset)
    assert (event.type, event.data, event.id) == ("reset", "worker_lost", f"{RUN}:4")


@given(TEXTS)
def test_text_is_exactly_the_text_with_its_line_ends_as_one(texts: list[str]) -> None:
    events = [Event(seq, "chunk", chunk(text, "m1")) for seq, text in enumerate(texts, 1)]
    found = read(Text(), *events, Event(len(texts) + 1, "end", encode(END)))
    assert [event.type for event in found] == ["message"] * len(texts) + ["end"]
    assert [event.data for event in found[:-1]] == [plain(text) for text in texts]
    assert [event.id for event in found] == [f"{RUN}:{n}" for n in range(1, len(texts) + 2)]


@given(SAID, st.sampled_from([END, json.loads(end_data("failed", ErrorCode.MODEL_ERROR))]))
def test_text_says_its_text_its_resets_and_its_end_alone(
    said: list[tuple[str, dict[str, Any]]], end: dict[str, Any]
) -> None:
    said = [(t, d | {"reason": "worker_lost"} if t == "reset" else d) for t, d in said]
    found = read(Text(), *log(*said, ("end", end)))
    expected = [
        ("message", plain(data["content"])) if type == "chunk" else ("reset", "worker_lost")
        for type, data in said
        if type == "reset" or (type == "chunk" and data["kind"] == "text")
    ]
    if end["error"]:
        expected.append(("error", end["error"]["message"]))
    assert [(e.type, e.data) for e in found] == [*expected, ("end", end["status"])]


def plain(text: str) -> str:
    """The text as an event stream can carry it: UTF-8, LF at the end of lines."""
    return re.sub("[\ud800-\udfff]", "?", re.sub("\r\n|\r", "\n", whole(text)))


# Both


@pytest.mark.parametrize("dialect", [Native(), Text()], ids=lambda dialect: dialect.name)
@given(said=SAID, cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_wherever_a_line_cuts_it_says_the_same(
    dialect: Dialect, said: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    said = [(t, d | {"reason": "worker_lost"} if t == "reset" else d) for t, d in said]
    frames = dialect.frames(RUN, log(*said))
    assert in_pieces(frames, cuts) == in_pieces(frames, [])


def test_a_reader_who_is_sent_away_learns_when_to_come_back() -> None:
    for dialect in (Native(), Text()):
        frames = dialect.frames(RUN, [Event(0, "reconnect", encode({"after": 1.5}))])
        assert frames == b'event: reconnect\ndata: {"after":1.5}\n\n'


@given(st.lists(st.characters(exclude_categories=[]) | PIECES).map("".join))
def test_who_may_read_no_further_is_told_so_and_nothing_else(sentence: str) -> None:
    last = Event(0, "unauthorized", encode({"code": "unauthorized", "message": sentence}))
    chunks = Event(3, "chunk", chunk("a", "m1"))
    native, text = (read(dialect, chunks, last) for dialect in (Native(), Text()))
    assert [event.type for event in native] == ["message", "unauthorized"]
    assert json.loads(native[1].data) == {"code": "unauthorized", "message": whole(sentence)}
    assert [(e.type, e.data) for e in text] == [("message", "a"), ("error", plain(sentence))]
    # There is no place to go on from but the one before.
    assert {event.id for event in native + text} == {f"{RUN}:3"}


@pytest.mark.parametrize("dialect", [Native(), Text()], ids=lambda dialect: dialect.name)
def test_a_page_of_events_is_its_events_one_by_one(dialect: Dialect) -> None:
    events = [
        Event(1, "start", encode({"run": RUN})),
        *(Event(seq, "chunk", chunk(FORGED, "m1")) for seq in range(2, 6)),
        Event(6, "end", end_data("failed", ErrorCode.MODEL_ERROR)),
    ]
    together = dialect.frames(RUN, events)
    assert together == b"".join(dialect.frames(RUN, [event]) for event in events)
    assert dialect.frames(RUN, []) == b""
