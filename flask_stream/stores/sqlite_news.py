"""News of changes that other processes make to the same file, found by polling.

SQLite has a number, `data_version`, that changes when another connection has written to the file.
A poll reads the runs, in one statement, only if this number has changed. The store reports the
changes that this process makes itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .base import Batch, News

#: Seconds between two polls.
POLL = 0.02
#: Stands for the seq of a run that does not exist.
GONE = -1


class PolledRun(NamedTuple):
    """The state of a run at a poll."""

    run: str
    seq: int
    cancel: bool
    live: bool


class NewsFeed:
    """Reports changes to watched runs, and to runs of this process that are to be cancelled.

    `poll` is called with the last known `data_version` and the ids of runs. It returns the current
    version and the existing runs among them, or None instead of the runs if the version is the
    same.
    """

    def __init__(
        self, poll: Callable[[int, list[str]], tuple[int, list[PolledRun] | None]]
    ) -> None:
        self._read_runs = poll
        self._changed = threading.Condition()
        self._news: dict[News, None] = {}
        self._watched: dict[str, int] = {}  # with the seq that was last reported
        self._held: set[str] = set()  # live runs of this process, not yet to be cancelled
        self._revision = 0  # increased when the runs must be read again
        self._polled_revision = 0  # the revision at the last poll
        self._version = -1  # SQLite's `data_version` at the last poll
        self._due = 0.0  # when the next poll is due

    def watch(self, run: str) -> None:
        with self._changed:
            self._watched[run] = 0
            self._revision += 1
            self._report(News(run, cancel=False))

    def unwatch(self, run: str) -> None:
        with self._changed:
            self._watched.pop(run, None)
            self._news.pop(News(run, cancel=False), None)

    def wait(self, timeout: float) -> list[News]:
        """Return news, as soon as there is any. Raise what `poll` raises."""
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
                runs, revision = [*self._watched, *self._held], self._revision
            if runs and self._due <= now:
                self._poll(runs, revision)
            elif now >= until:
                return []

    def _poll(self, runs: list[str], revision: int) -> None:
        self._due = time.monotonic() + POLL
        version = self._version if revision == self._polled_revision else -1
        version, found = self._read_runs(version, runs)
        with self._changed:
            self._version, self._polled_revision = version, revision
            if found is None:
                return
            for run in set(runs).difference(each.run for each in found):
                self._report_removed(run)
            for run, seq, cancel, live in found:
                self._report_grown(run, seq)
                if run in self._held and (cancel or not live):
                    self._held.discard(run)
                    if live:
                        self._report(News(run, cancel=True))

    def _report_removed(self, run: str) -> None:
        self._held.discard(run)
        if self._watched.get(run, GONE) != GONE:
            self._watched[run] = GONE
            self._report(News(run, cancel=False))

    def _report_grown(self, run: str, seq: int) -> None:
        if self._watched.get(run, seq) < seq:
            self._watched[run] = seq
            self._report(News(run, cancel=False))

    def _report(self, news: News) -> None:
        self._news[news] = None
        self._changed.notify_all()

    # Changes by this process, which do not change SQLite's `data_version` for its connection.

    def appended(self, batches: Sequence[Batch], stored: Sequence[bool]) -> None:
        """Report the batches that were stored; release the runs that ended or refused a batch."""
        with self._changed:
            for batch, done in zip(batches, stored, strict=True):
                if done:
                    self._report_grown(batch.run, batch.events[-1].seq)
                if batch.status is not None or not done:
                    self._held.discard(batch.run)

    def cancelled(self, run: str) -> None:
        """Report that this process asked for a run to be cancelled."""
        with self._changed:
            if run in self._held:
                self._held.discard(run)
                self._report(News(run, cancel=True))

    def hold(self, runs: Sequence[str]) -> None:
        """Note that this process holds these live runs."""
        with self._changed:
            self._held.update(runs)
            self.refresh()

    def release(self, runs: Iterable[str]) -> None:
        """Note that this process no longer holds these runs."""
        with self._changed:
            self._held.difference_update(runs)

    def refresh(self) -> None:
        """Read all runs at the next poll, even if no other process has written anything."""
        with self._changed:
            self._revision += 1
            self._changed.notify_all()
