"""The runner: works on one run, from the call of its chain to its `end`, in a task of its own.

It adds the source's events to the run's log. A run ends because its chain ends or fails, or because
it is stopped: by a user, a time limit, a store that does not answer, or the worker's shutdown. In
every case the log gets exactly one `end`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from ..concurrency import tasks
from ..concurrency.fairness import yield_control
from ..errors import ErrorCode
from ..events import NewEvent, encode
from ..sources.base import Input, Source
from ..sources.error_codes import error_code
from ..sources.finish_reasons import FinishReason, error_finish_reason
from ..stores.base import Run
from .history import shown
from .log_writer import LogWriter, WriteFailure

logger = logging.getLogger(__name__)

#: Seconds to wait for a run to end after it was stopped.
STOP_WAIT = 10.0
#: Seconds after which a run lets others run, since a chain that never blocks would not do so. The
#: first slice of a run is shorter, so that the first tokens of many runs come soon.
FIRST_SLICE, SLICE = 0.0005, 0.005
#: Seconds that a chain on a plain thread, which cannot be interrupted, has to notice a stop.
NOTICE_TIME = 1.0


class StopReason(Enum):
    """Why a run was stopped: the status and the error code of its `end`."""

    CANCELLED = "cancelled", None
    TIMEOUT = "failed", ErrorCode.TIMEOUT
    STORE = "failed", ErrorCode.STORE_ERROR
    LOST = "failed", ErrorCode.WORKER_LOST  # this worker shuts down, or another took the run over

    def __init__(self, status: str, code: ErrorCode | None) -> None:
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The time limits of a run in seconds: to its first event, between two events, in total."""

    first: float
    silence: float
    total: float


class Runner:
    """Works on one run. `on_end` is called in the run's own task when the run has ended.

    `prepare` returns the chain's input. It may wait, as the time limits begin after it. `status` is
    the status with which the run ended, or None.
    """

    def __init__(
        self,
        log: LogWriter,
        source: Source,
        prepare: Callable[[], Input],
        limits: RunLimits,
        on_end: Callable[[Runner], None],
    ) -> None:
        self.log = log
        self.status: str | None = None
        self._source = source
        self._prepare = prepare
        self._limits = limits
        self._on_end = on_end
        self._started_at = time.monotonic()
        self._called_at: float | None = None
        self._last_event_at: float | None = None
        self._stop_reason: StopReason | None = None
        self._active = True
        self._tokens = 0
        self._next_yield = 0.0
        self._interrupted = False
        self._finish_reason: FinishReason | None = None
        self._on_end_called = False
        self._lock = threading.Lock()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        """Start the task that calls the chain."""
        with self._lock:  # the task may begin at once: `stop` must wait until `_task` is set
            self._task = tasks.start_task(self._main, name=f"run {self.log.run}")

    # In the run's own task

    def _main(self) -> None:
        try:
            status, code = self._call_chain()
        except tasks.Interrupted:
            status, code = self._stop_result()
        # A stop at this point is too late, as the chain has ended.
        with tasks.shield():
            self._finish(status, code)

    def _call_chain(self) -> tuple[str, ErrorCode | None]:
        try:
            if self._stop_reason is None:
                input = self._prepare()
                self._called_at = self._started_at = time.monotonic()
                self.log.mark_started(self._called_at)
                if self._stop_reason is None:
                    self._pump(input)
        except tasks.Interrupted:
            raise
        except BaseException as error:
            # A chain may also raise SystemExit, asyncio's CancelledError or gevent's Timeout. That
            # ends this run only, and its log gets an `end`.
            if self._stop_reason is not None:
                return self._stop_result()
            code = error_code(error)
            self._finish_reason = error_finish_reason(error)
            logger.exception("run %s: failed: %s", self.log.run, code)
            return "failed", code
        finally:
            self._active = False
        if self._stop_reason is not None:
            return self._stop_result()
        if self._interrupted:
            self._finish_reason = None  # the answer continues when the interrupt is answered
            return "interrupted", None
        return "done", None

    def _record(self, type: str, data: str) -> None:
        if type == "usage":
            with self._lock:  # branches of a chain may run in several threads
                self._tokens += json.loads(data)["total_tokens"]
        elif type == "interrupt":
            self._interrupted = True

    def _pump(self, input: Input) -> None:
        append, clock = self.log.append, time.monotonic
        tasks.scope().emit = self._append_now
        slice = FIRST_SLICE
        next_yield = clock() + slice
        with closing(self._events(input)) as events:
            for event in events:
                self._last_event_at = now = clock()
                append(event, now)
                if event[0] != "chunk":
                    self._record(*event)
                if self._stop_reason is not None:
                    tasks.scope().notice()
                    return
                if now > next_yield:
                    self._yield_control()
                    slice = min(slice * 2, SLICE)
                    next_yield = clock() + slice

    def _events(self, input: Input) -> Generator[NewEvent, None, None]:
        self._finish_reason = yield from self._source.stream(input)

    def _append_now(self, event: NewEvent) -> None:
        """Add an event that the chain does not yield. Any of its threads may call this."""
        if not self._active:
            return
        self._last_event_at = now = time.monotonic()
        self.log.append(event, now)
        self._record(*event)
        if now > self._next_yield:
            self._yield_control()
            self._next_yield = time.monotonic() + SLICE

    def _yield_control(self) -> None:
        yield_control()
        while self.log.full and self._stop_reason is None:
            time.sleep(SLICE)

    def _stop_result(self) -> tuple[str, ErrorCode | None]:
        self._active = False
        self._finish_reason = None
        reason = self._stop_reason or StopReason.LOST
        return reason.status, reason.code

    def _finish(self, status: str, code: ErrorCode | None) -> None:
        if self.log.close(status, end_data(status, code, self._finish_reason)):
            self.status = status
            seconds = time.monotonic() - self._started_at
            suffix = f" ({code})" if code else ""
            logger.info("run %s: %s%s after %.1f s", self.log.run, status, suffix, seconds)
        with self._lock:
            called, self._on_end_called = self._on_end_called, True
        if not called:  # an abandoned chain gets here a second time when it notices the stop
            self._on_end(self)

    # From other threads

    @property
    def tokens(self) -> int | None:
        """The tokens that the models reported; None if the run was not done and reported none."""
        return self._tokens or (0 if self.status == "done" else None)

    def stop(self, reason: StopReason) -> None:
        """Stop the run, unless its chain has already ended. Returns at once; see `wait`."""
        with self._lock:
            if self._stop_reason is not None or not self._active:
                return
            self._stop_reason = reason
        if self._task is not None and not self._task.interrupt():
            threading.Thread(target=self._abandon, name="abandon", daemon=True).start()

    def _abandon(self) -> None:
        """End the run although its chain is blocked on a plain thread and cannot be interrupted.

        The chain notices the stop when it yields its next event, which is dropped.
        """
        assert self._task is not None
        if not self._task.join(NOTICE_TIME):
            status, code = self._stop_result()
            self._finish(status, code)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the run to end; return whether it has."""
        return self.log.settled.wait(timeout)

    def overdue(self, now: float) -> bool:
        """Whether the run exceeds a time limit at the monotonic time `now`."""
        limits = self._limits
        if self._last_event_at is None:
            late = now - self._started_at > limits.first
        else:
            late = now - self._last_event_at > limits.silence
        return (
            self._active
            and self._called_at is not None
            and (late or now - self._started_at > limits.total)
        )

    def on_write_failure(self, failure: WriteFailure) -> None:
        """Stop the run because its log can no longer be written."""
        self.stop(StopReason.STORE if failure is WriteFailure.UNREACHABLE else StopReason.LOST)
        if failure is WriteFailure.UNREACHABLE and self.log.closed:
            # Its `end` was added before, and could not be stored.
            self.log.show_end(end_data(StopReason.STORE.status, StopReason.STORE.code))


def start_event(run: Run) -> NewEvent:
    """Return the first event of a run."""
    data = {
        "run": run.id,
        "chain": run.chain,
        "conversation": run.conversation,
        "parent": run.parent,
        "input": shown(json.loads(run.input)),
    }
    return "start", encode(data)


def end_data(status: str, code: ErrorCode | None, finish_reason: FinishReason | None = None) -> str:
    """Return the data of an `end` event."""
    error = None
    if code is not None:
        error = {"code": code, "message": code.sentence, "retryable": code.retryable}
    return encode({"status": status, "finish_reason": finish_reason, "error": error})
