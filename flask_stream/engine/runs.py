"""Starting, reading and cancelling runs: the interface of the engine that transports use.

This module does not know Flask.
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
    """The runs of one service. `chains` may grow later.

    `add_tokens` is called with the principal and the tokens of each run that has ended. It may
    raise StoreError.
    """

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        add_tokens: Callable[[str, int], None] = lambda principal, tokens: None,
    ) -> None:
        self.store = store
        self._live_runs = LiveRuns(store, chains, times, add_tokens)
        self._journal = self._live_runs.journal
        self.admission = Admission(store, chains, times, self._live_runs, self.cancel_any)
        self.conversations = Conversations(store, self.cancel_any, self._live_runs.forget)

    @property
    def live_run_count(self) -> int:
        """How many runs this process is working on."""
        return len(self._live_runs)

    @property
    def draining(self) -> bool:
        """Whether this process is shutting down and starts no more runs."""
        return self._live_runs.draining

    # Reading

    def check_ready(self) -> None:
        """Raise Unavailable if this process cannot start a run now."""
        if self.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        with unavailable_on_store_error("not ready", "Answers cannot be stored right now."):
            # A write, since a store that is full can still be read.
            self.store.claim("ready", "", 1.0)

    def get(self, run: str, principal: str = "") -> Run:
        """Return a run that `principal` may read.

        Raises NotFound, Gone if the run was removed because of its age, or Unavailable.
        """
        self._live_runs.start_maintenance()
        with unavailable_on_store_error(f"run {run} cannot be read"):
            found = self.store.get(run) if is_id(run) else None
            if found is None:
                owner = self.store.expired_principal(run) if is_id(run) else None
                if owner is not None and may_access(principal, owner):
                    raise Gone("This answer is no longer kept.", field="run")
                raise NotFound("There is no such run.", field="run")
            return require_access(principal, found)

    def answer(self, run: Run) -> str | None:
        """Return the text of a run's answer, or None while it is live. Raises Unavailable."""
        if run.live:
            return None
        with unavailable_on_store_error(f"run {run.id} cannot be read"):
            return answer_of(self.store, run)

    def read(self, cursor: Cursor, principal: str = "") -> LogReader | None:
        """Return a reader of the events after the cursor; None if the run has ended before it.

        Raises what `get` raises, and BadRequest for a cursor after the last event of the log.
        """
        run = self.get(cursor.run, principal)
        if cursor.seq >= run.seq and not run.live:
            return None
        if cursor.seq > run.seq:
            raise BadRequest("The run has not produced that many events yet.", field="after")
        return self._journal.read(run, cursor.seq)

    # Cancelling

    def cancel(self, run: str, timeout: float, principal: str) -> Run:
        """Stop a run for `principal`, wait up to `timeout` seconds for its end, and return it.

        Raises what `get` raises, and Unavailable if the run has not ended by then.
        """
        found = self.get(run, principal)
        if not found.live:
            return found
        self.cancel_any(found, timeout)
        return self.get(run, principal)

    def cancel_any(self, run: Run, timeout: float) -> None:
        """Stop a live run, whoever owns it. Raises Unavailable.

        The caller has checked the principal's rights, or acts for the service itself.
        """
        with unavailable_on_store_error(
            f"run {run.id} cannot be stopped", "The run cannot be stopped right now."
        ):
            runner = self._live_runs.runner(run.id)
            if runner is not None:
                runner.stop(StopReason.CANCELLED)
                ended = runner.wait(timeout)
            else:
                ended = self._cancel_elsewhere(run, timeout)
        if not ended:
            raise Unavailable("The run has not stopped yet.", field="run", retry_after=1)

    def _cancel_elsewhere(self, run: Run, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        reader = self._journal.read(run, run.seq)
        try:
            self.store.cancel(run.id)
            while (left := deadline - time.monotonic()) > 0:
                events = reader.take()
                if events is None:
                    reader.wait(left)
                elif events.ended:
                    return True
            return False
        finally:
            reader.close()

    # Shutting down

    def drain(self, grace: float) -> None:
        """Refuse new runs, disconnect readers, and stop runs still live after `grace` seconds."""
        self._live_runs.drain(grace)

    def close(self) -> None:
        """End every run and every thread, and close the store."""
        self._live_runs.close()
        self.store.close()
