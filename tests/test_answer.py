"""The answer of a run: folded as it comes, and folded from its log, it is the same."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stream.engine.answer import AnswerFold, answer_of
from flask_stream.events import Event, chunk, encode, new_id
from flask_stream.stores.base import Batch, Run
from flask_stream.stores.memory import MemoryStore


def from_log(events: list[Event]) -> str:
    """The answer as it is read from a log that has none stored."""
    store = MemoryStore()
    run = Run(new_id(), "chat", new_id(), None, "", "{}", time.time())
    store.create(run, "token", 60)
    store.append([Batch(run.id, "token", 0, events, "done")])
    stored = store.get(run.id)
    assert stored is not None
    assert stored.answer is None
    return answer_of(store, stored)


_MESSAGES = st.sampled_from(["left", "right", "a" * 32])
_KINDS = st.sampled_from(["text", "text", "reasoning", "refusal"])
_EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda text, message, kind: ("chunk", chunk(text, message, kind)),
            *(st.text(max_size=8), _MESSAGES, _KINDS),
        ),
        st.builds(  # as a source of somebody else may write it
            lambda text, message, kind: (
                "chunk",
                encode({"kind": kind, "message": message, "content": text}),
            ),
            *(st.text(max_size=8), st.text(max_size=4), _KINDS),
        ),
        st.just(("step", '{"node":"a","status":"done"}')),
        st.just(("reset", '{"attempt":2,"reason":"worker_lost"}')),
    ),
    min_size=1,
    max_size=30,
)


@given(said=_EVENTS, cuts=st.lists(st.integers(0, 30)))
def test_an_answer_is_the_same_however_it_is_folded(
    said: list[tuple[str, str]], cuts: list[int]
) -> None:
    events = [Event(seq, *each) for seq, each in enumerate(said, 1)]
    fold, places = AnswerFold(), sorted({0, len(events), *cuts})
    for start, end in pairwise(places):
        fold.add(events[start:end])
    text = fold.json()
    assert text is not None
    assert text.isascii()
    assert json.loads(text) == from_log(events)


@pytest.mark.parametrize(
    ("data", "folded"),
    [
        ('{"content":"a","more":"b","message":"m","kind":"text"}', None),
        ('{"content":"a","more":1,"message":"m","kind":"text"}', '"a"'),
        ('{"content":"a","message":"m","kind":"text","more":1}', '"a"'),
        ('{"more":"b","content":"a","message":"m","kind":"text"}', '"a"'),
    ],
)
def test_a_chunk_with_a_field_of_its_own_is_parsed_or_left_to_the_log(
    data: str, folded: str | None
) -> None:
    fold = AnswerFold()
    fold.add([Event(1, "chunk", data)])
    assert fold.json() == folded
    assert from_log([Event(1, "chunk", data)]) == "a"


def test_text_that_looks_like_the_end_of_a_chunk_is_text() -> None:
    text = '","message":"m","kind":"text"}'
    events = [Event(seq, "chunk", chunk(text, "m")) for seq in (1, 2, 3)]
    fold = AnswerFold()
    fold.add(events)
    assert json.loads(fold.json() or "") == text * 3 == from_log(events)


def test_an_answer_whose_beginning_is_unknown_is_not_known_before_a_reset() -> None:
    fold = AnswerFold(complete=False)
    fold.add([Event(5, "chunk", chunk("lost", "m"))])
    assert fold.json() is None
    fold.add([Event(6, "reset", "{}"), Event(7, "chunk", chunk("found", "m"))])
    assert fold.json() == '"found"'
