"""Events and cursors: what a log is made of, to the letter."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stream.events import TYPES, Cursor, Event, chunk, encode, is_id, new_id

RUN = "0123456789abcdef"

#: All of Unicode, halves of surrogate pairs included, as a model may say it.
TEXT = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\r\n\0\u2028\ud83d\ude00"))


# Cursors


@pytest.mark.parametrize(
    ("text", "run", "seq"),
    [
        (f"{RUN}:0", RUN, 0),
        (f"{RUN}:17", RUN, 17),
        (f"{'Az-_' * 16}:1", "Az-_" * 16, 1),
        (f"{RUN}:{'9' * 16}", RUN, int("9" * 16)),
    ],
)
def test_a_cursor_is_a_run_and_a_seq(text: str, run: str, seq: int) -> None:
    assert Cursor.parse(text) == (run, seq)
    assert Cursor.of("f" * 32, text) == (run, seq)


NO_CURSORS = [
    "",
    ":",
    RUN,
    f"{RUN}:",
    ":1",
    f"{RUN}:01",
    f"{RUN}:-1",
    f"{RUN}:+1",
    f"{RUN}:1.0",
    f"{RUN}:1e3",
    f"{RUN}:0x1",
    f"{RUN}:1_0",
    f"{RUN}: 1",
    f" {RUN}:1",
    f"{RUN}:1 ",
    f"{RUN}:1\n",
    f"{RUN}:1:1",
    f"{RUN}:\u0661",  # a digit to `str.isdigit` and to `int`
    f"{RUN}:{'1' * 17}",
    f"{RUN[:15]}:1",
    f"{'a' * 65}:1",
    f"{RUN}\u00e4:1",
    f"{RUN}/..:1",
    f"{RUN}\0:1",
]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_what_is_not_written_so_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="<run>:<seq>"):
        Cursor.parse(text)
    with pytest.raises(ValueError, match="<run>:<seq>"):
        Cursor.of(RUN, text)


def test_a_bare_seq_is_a_place_in_a_run_that_is_known() -> None:
    assert Cursor.of(RUN, "0") == (RUN, 0)
    assert Cursor.of(RUN, "12") == (RUN, 12)
    with pytest.raises(ValueError, match="<run>:<seq>"):
        Cursor.parse("12")


@pytest.mark.parametrize("text", ["01", "-1", "+1", " 1", "1\n", "1.0", "\u0661", "1" * 17])
def test_a_bare_seq_is_strict_too(text: str) -> None:
    with pytest.raises(ValueError, match="<run>:<seq>"):
        Cursor.of(RUN, text)


@given(st.text(st.sampled_from("0123456789abc:-_ \n"), max_size=40))
def test_a_cursor_that_was_read_is_written_the_same(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except ValueError:
        return
    assert f"{cursor.run}:{cursor.seq}" == text


# Data


@given(TEXT, st.sampled_from(["text", "reasoning"]))
def test_a_chunk_is_what_the_encoder_would_have_made(content: str, kind: str) -> None:
    assert chunk(content, "m1", kind) == encode({"content": content, "message": "m1", "kind": kind})


@given(TEXT)
def test_data_is_ascii_on_one_line(content: str) -> None:
    for data in (chunk(content, "m1"), encode({"name": content, "value": {content: [content]}})):
        assert data.isascii()
        assert len(data.splitlines()) == 1
        assert data.isprintable()


@given(TEXT)
def test_data_can_be_read_again(content: str) -> None:
    # Two halves of a surrogate pair are one character to JSON.
    whole = content.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert Event(1, "chunk", chunk(content, "m1")).value() == {
        "content": whole,
        "message": "m1",
        "kind": "text",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1}, b"x"])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode({"value": value})


def test_data_is_written_without_spaces() -> None:
    assert encode({"a": 1, "b": [None, True]}) == json.dumps(
        {"a": 1, "b": [None, True]}, separators=(",", ":")
    )


def test_a_log_begins_with_start_and_closes_with_end() -> None:
    assert (TYPES[0], TYPES[-1]) == ("start", "end")
    assert len(set(TYPES)) == len(TYPES)


# Ids


def test_ids_are_new_and_can_be_given_back() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_id(id) and len(id) == 32 for id in ids)
    assert Cursor.parse(f"{new_id()}:1")


@pytest.mark.parametrize("text", [str(uuid.UUID(int=5)), "a" * 16, "A-_9" * 16])
def test_a_clients_own_id_may_be(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize(
    "text", ["", "a" * 15, "a" * 65, "a" * 16 + "\n", "a" * 16 + ":", "../" * 6, "\u00e4" * 16]
)
def test_an_id_holds_nothing_that_means_something_elsewhere(text: str) -> None:
    assert not is_id(text)
