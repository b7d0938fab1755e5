"""A tail and its readers: one cursor, and no seam between what is stored and what comes."""

from __future__ import annotations

import time

import pytest

from flask_stream.engine.log_reader import KEPT, LogReader, LogTail
from flask_stream.events import Event
from flask_stream.stores.base import Batch, Run
from flask_stream.stores.memory import MemoryStore

RUN = "r" * 16


def events(first: int, last: int) -> list[Event]:
    return [Event(seq, "chunk", f"{seq}") for seq in range(first, last + 1)]


@pytest.fixture
def store() -> MemoryStore:
    """A store that has the first ten events."""
    store = MemoryStore()
    store.create(Run(RUN, "c", "c" * 16, None, "", "{}", time.time()), "token", 60)
    store.append([Batch(RUN, "token", 0, events(1, 10), None)])
    return store


def reader(store: MemoryStore, tail: LogTail, after: int = 0) -> LogReader:
    made = LogReader(store, RUN, tail, after, tail.remove)
    tail.add(made)
    return made


def seqs(reader: LogReader) -> list[int]:
    """Everything there is to take now."""
    found: list[int] = []
    while (shared := reader.take()) is not None:
        found += [event.seq for event in shared.events]
    return found


def test_a_reader_goes_from_the_store_to_the_tail(store: MemoryStore) -> None:
    tail = LogTail(6, written_here=False)
    tail.extend(events(7, 10))
    for after in range(11):
        assert seqs(reader(store, tail, after)) == list(range(after + 1, 11))


def test_what_is_told_twice_is_taken_once(store: MemoryStore) -> None:
    tail = LogTail(0, written_here=True)
    follower = reader(store, tail)
    tail.extend(events(1, 4))
    tail.extend(events(2, 6))
    tail.extend(events(3, 5))
    assert seqs(follower) == [1, 2, 3, 4, 5, 6]


def test_a_tail_that_missed_something_leaves_it_to_the_store(store: MemoryStore) -> None:
    """Whoever takes a dead worker's run over may not have heard of its last words."""
    tail = LogTail(0, written_here=False)
    follower = reader(store, tail)
    tail.extend(events(1, 3))
    assert seqs(follower) == [1, 2, 3]
    store.append([Batch(RUN, "token", 10, events(11, 11), None)])
    tail.extend(events(11, 11))
    assert seqs(follower) == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_reader_that_is_far_behind_turns_to_the_store(store: MemoryStore) -> None:
    tail = LogTail(0, written_here=True)
    follower = reader(store, tail)
    store.append([Batch(RUN, "token", 10, events(11, 2 * KEPT + 50), None)])
    tail.extend(events(1, 2 * KEPT))
    assert tail.start == KEPT  # the first call is longer than what is kept
    tail.extend(events(2 * KEPT + 1, 2 * KEPT + 50))
    assert tail.start == KEPT
    assert seqs(follower) == list(range(1, 2 * KEPT + 51))


def test_a_tail_that_grows_gives_each_event_once(store: MemoryStore) -> None:
    tail = LogTail(0, written_here=True)
    eager, late = reader(store, tail), reader(store, tail)
    store.append([Batch(RUN, "token", 10, events(11, 3 * KEPT), None)])
    found = []
    for seq in range(1, 3 * KEPT + 1):
        tail.extend(events(seq, seq))
        found += seqs(eager)
        assert min(seq, KEPT) <= len(tail.events) <= 2 * KEPT
    assert found == seqs(late) == list(range(1, 3 * KEPT + 1))


def test_readers_at_one_place_share_one_piece(store: MemoryStore) -> None:
    tail = LogTail(0, written_here=True)
    one, two = reader(store, tail), reader(store, tail)
    tail.extend(events(1, 3))
    assert one.take() is two.take()


def test_a_reader_that_is_woken_before_it_waits_does_not_wait(store: MemoryStore) -> None:
    follower = reader(store, LogTail(10, written_here=True), 10)
    follower.wake()
    follower.wake()
    follower.wait()
    began = time.monotonic()
    follower.wait(0.05)
    assert time.monotonic() - began >= 0.04
