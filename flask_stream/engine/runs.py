"""Runs: start one, read one, cancel one. What every transport calls, and all that it calls.

This module knows contracts only: a store, sources, a journal. It does not know Flask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from ..errors import BadRequest, Gone, NotFound, Unavailable, unavailable_on_store_error
from ..events import Cursor, is_id
from ..stores.base import Run, Store
from .admission import Admission
from .answer import answer_of
from .chain import Chain
from .conversations import Conversations
from .live_runs import LiveRuns
from .log_reader import LogReader
from .maintenance import RunTimes
from .ownership import may_access, require_access
from .runner import StopReason

logger = logging.getLogger(__name__)


class Runs:
    """The runs of one service. `chains` may grow while it lives.

    `spent` is told how many tokens a run has cost its principal; it may raise StoreError.
    """

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        spent: Callable[[str, int], None] = lambda who, tokens: None,
    ) -> None:
        self.store = store
        self._live = LiveRuns(store, chains, times, spent)
        self._journal = self._live.journal
        self.starts = Admission(store, chains, times, self._live, self.cancel_any)
        self.conversations = Conversations(store, self.cancel_any, self._live.forget)

    @property
    def live(self) -> int:
        """How many runs this process works on."""
        return len(self._live)

    @property
    def draining(self) -> bool:
        """Whether this process is about to go, and takes no new runs."""
        return self._live.draining

    # Reading

    def check_ready(self) -> None:
        """Raise Unavailable where no run can be started now."""
        if self.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        with unavailable_on_store_error("not ready", "Answers cannot be stored right now."):
            # A store that is full can still be read.
            self.store.claim("ready", "", 1.0)

    def get(self, run: str, who: str = "") -> Run:
        """Return a run that `who` may read.

        Raises NotFound, or Gone when its log is no longer kept, or Unavailable.
        """
        self._live.begin()
        with unavailable_on_store_error(f"run {run} cannot be read"):
            found = self.store.get(run) if is_id(run) else None
            if found is None:
                owner = self.store.expired_principal(run) if is_id(run) else None
                if owner is not None and may_access(who, owner):
                    raise Gone("This answer is no longer kept.", field="run")
                raise NotFound("There is no such run.", field="run")
            return require_access(who, found)

    def answer(self, run: Run) -> str | None:
        """Return what a run has answered, or None while it is live. Raises Unavailable."""
        if run.live:
            return None
        with unavailable_on_store_error(f"run {run.id} cannot be read"):
            return answer_of(self.store, run)

    def read(self, cursor: Cursor, who: str = "") -> LogReader | None:
        """A reader of what comes after the cursor; None when the run is over and all was read.

        Raises what `get` raises, and BadRequest for a place where the log has not been yet.
        """
        run = self.get(cursor.run, who)
        if cursor.seq >= run.seq and not run.live:
            return None
        if cursor.seq > run.seq:
            raise BadRequest("The run has not come that far.", field="after")
        return self._journal.read(run, cursor.seq)

    # Ending

    def cancel(self, run: str, timeout: float, who: str) -> Run:
        """Stop a run for `who`, wait up to `timeout` seconds for its end, and return it.

        Raises what `get` raises, and Unavailable when the run has not ended by then.
        """
        found = self.get(run, who)
        if not found.live:
            return found
        self.cancel_any(found, timeout)
        return self.get(run, who)

    def cancel_any(self, run: Run, timeout: float) -> None:
        """Stop a live run in the name of this service, whoever owns it. Raises Unavailable.

        For callers that have checked the principal's right, or that act for nobody.
        """
        what, sentence = f"run {run.id} cannot be stopped", "The run cannot be stopped right now."
        with unavailable_on_store_error(what, sentence):
            runner = self._live.runner(run.id)
            if runner is not None:
                runner.stop(StopReason.CANCELLED)
                ended = runner.wait(timeout)
            else:
                ended = self._cancel_elsewhere(run, timeout)
        if not ended:
            raise Unavailable("The run has not stopped yet.", field="run", retry_after=1)

    def _cancel_elsewhere(self, run: Run, timeout: float) -> bool:
        until = time.monotonic() + timeout
        reader = self._journal.read(run, run.seq)
        try:
            self.store.cancel(run.id)
            while (left := until - time.monotonic()) > 0:
                events = reader.take()
                if events is None:
                    reader.wait(left)
                elif events.ended:
                    return True
            return False
        finally:
            reader.close()

    # The process's end

    def drain(self, grace: float) -> None:
        """Take no new runs, send the readers away, and end what is live after `grace` seconds."""
        self._live.drain(grace)

    def close(self) -> None:
        """End every run and every thread, and close the store."""
        self._live.close()
        self.store.close()
