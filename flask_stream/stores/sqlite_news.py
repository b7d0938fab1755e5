"""How a process hears of what others write to the same file: it looks, often, at next to nothing.

SQLite keeps a number that changes with whatever another connection has written. Only then are the
runs themselves looked at, all of them by one statement. What this process writes it knows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .base import Batch, News

#: Seconds between two looks for what other processes have written.
POLL = 0.02
#: The seq of a run that is not there.
GONE = -1


class Seen(NamedTuple):
    """A run as it was at a look."""

    run: str
    seq: int
    cancel: bool
    live: bool


class NewsFeed:
    """Hears of watched runs, and of those that this process holds and that are to be cancelled.

    `look` is given the version that was seen last and the runs of interest, and returns the
    version, and those of the runs that are there, or None if the version is still the same.
    """

    def __init__(self, look: Callable[[int, list[str]], tuple[int, list[Seen] | None]]) -> None:
        self._look_at = look
        self._changed = threading.Condition()
        self._news: dict[News, None] = {}
        self._watched: dict[str, int] = {}  # and the seq that was last told of
        self._held: set[str] = set()  # live runs of this process, not told to be cancelled
        self._asked = 0  # how often what to look for has changed
        self._looked = 0  # what that was at the last look
        self._version = -1  # SQLite's `data_version` at the last look
        self._due = 0.0  # when the next look is

    def watch(self, run: str) -> None:
        with self._changed:
            self._watched[run] = 0
            self._asked += 1
            self._tell(News(run, cancel=False))

    def unwatch(self, run: str) -> None:
        with self._changed:
            self._watched.pop(run, None)
            self._news.pop(News(run, cancel=False), None)

    def wait(self, timeout: float) -> list[News]:
        """News, as soon as there are some. Raises what `look` raises."""
        until = time.monotonic() + timeout
        while True:
            with self._changed:
                if self._news:
                    news = list(self._news)
                    self._news.clear()
                    return news
                now = time.monotonic()
                idle = not self._watched and not self._held
                if (wait := until if idle else min(until, self._due)) > now:
                    self._changed.wait(wait - now)
                    continue
                runs, asked = [*self._watched, *self._held], self._asked
            if runs and self._due <= now:
                self._look(runs, asked)
            elif now >= until:
                return []

    def _look(self, runs: list[str], asked: int) -> None:
        self._due = time.monotonic() + POLL
        version = self._version if asked == self._looked else -1
        version, seen = self._look_at(version, runs)
        with self._changed:
            self._version, self._looked = version, asked
            if seen is None:
                return
            for run in set(runs).difference(each.run for each in seen):
                self._lost(run)
            for run, seq, cancel, live in seen:
                self._grown(run, seq)
                if run in self._held and (cancel or not live):
                    self._held.discard(run)
                    if live:
                        self._tell(News(run, cancel=True))

    def _lost(self, run: str) -> None:
        self._held.discard(run)
        if self._watched.get(run, GONE) != GONE:
            self._watched[run] = GONE
            self._tell(News(run, cancel=False))

    def _grown(self, run: str, seq: int) -> None:
        if self._watched.get(run, seq) < seq:
            self._watched[run] = seq
            self._tell(News(run, cancel=False))

    def _tell(self, news: News) -> None:
        self._news[news] = None
        self._changed.notify_all()

    # What this process has done: SQLite's `data_version` does not tell of it.

    def wrote(self, batches: Sequence[Batch], stored: Sequence[bool]) -> None:
        """These batches were stored, or were refused."""
        with self._changed:
            for batch, done in zip(batches, stored, strict=True):
                if done:
                    self._grown(batch.run, batch.events[-1].seq)
                if batch.status is not None or not done:
                    self._held.discard(batch.run)

    def cancelled(self, run: str) -> None:
        """Somebody here asked for this run to be cancelled."""
        with self._changed:
            if run in self._held:
                self._held.discard(run)
                self._tell(News(run, cancel=True))

    def hold(self, runs: Sequence[str]) -> None:
        """These live runs are held by this process from now on."""
        with self._changed:
            self._held.update(runs)
            self.look_again()

    def release(self, runs: Iterable[str]) -> None:
        """These runs are no longer held by this process."""
        with self._changed:
            self._held.difference_update(runs)

    def look_again(self) -> None:
        """Look at all runs, though nobody else may have written anything."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()
