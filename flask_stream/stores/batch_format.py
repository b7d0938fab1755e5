"""The text format of a batch: one line per event, with `at`, type and data separated by tabs.

The data is JSON text in ASCII, so it contains neither tabs nor line ends. Logs that were written
before events had times have lines without `at`. They are still read; their `at` is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Event

# This runs once per token, and is twice as fast as calling the class.
_new = tuple.__new__


def encode_batch(events: Sequence[Event]) -> str:
    """Return the events as lines. The lines do not contain the seqs."""
    return "\n".join([f"{at}\t{type}\t{data}" for _, type, data, at in events])


def decode_batch(lines: Sequence[str], first: int) -> list[Event]:
    """Return the events that the lines contain. `first` is the seq of the first one."""
    events = []
    for seq, line in enumerate(lines, first):
        at, type, data = line.split("\t", 2) if line[:1].isdigit() else ("0", *line.split("\t", 1))
        events.append(_new(Event, (seq, type, data, int(at))))
    return events
