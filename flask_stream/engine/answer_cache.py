"""The answer cache: a run can replay the events of an earlier run instead of calling the chain.

The earlier run may still be live; then the new one follows it. The new run still has its own log
and owner, and is stopped by itself. If the earlier run does not end as `done`, the new run sends a
`reset` and calls the chain, or replays another run that does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Sequence
from hashlib import sha256
from typing import Any

from ..errors import ErrorCode, StoreError
from ..events import NewEvent, encode
from ..sources.base import Input, Source, Turn
from ..sources.finish_reasons import FinishReason
from ..stores.base import RUNNING, Run, Store
from .chain import Chain
from .history import turns
from .log_reader import LogReader
from .ownership import is_anonymous

logger = logging.getLogger(__name__)

#: Events of the earlier run that are not replayed: they belong to that run only.
_NOT_REPLAYED = {"start", "end", "usage", "interrupt"}
#: Seconds to wait for new events before checking again.
_WAIT_TIME = 1.0


def cache_key(chain: str, version: str, principal: str, input: str, history: Sequence[Turn]) -> str:
    """Return a key that is equal for equal arguments. The order of fields in `input` is ignored."""
    value, past = json.loads(input), [list(turn) for turn in history]
    text = json.dumps([chain, version, principal, value, past], sort_keys=True)
    return f"answer:{sha256(text.encode()).hexdigest()}"


class AnswerCache:
    """Finds earlier runs with the same question. `read` returns a reader of a run's whole log."""

    def __init__(self, store: Store, read: Callable[[Run], LogReader]) -> None:
        self._store = store
        self._read = read

    def source(self, chain: Chain, run: Run) -> tuple[str | None, Source]:
        """Return the run's cache key, if it has claimed one, and the source that answers it."""
        try:
            return self._find(chain, run)
        except StoreError as error:
            # The run was created already, so it must be answered, if without the cache.
            logger.warning("run %s: not using the cache: store: %s", run.id, error)
            return None, chain.source

    def _find(self, chain: Chain, run: Run) -> tuple[str | None, Source]:
        if not chain.cache or (is_anonymous(run.principal) and not chain.shared):
            return None, chain.source  # two anonymous callers may be different people
        branch = self._store.branch(run.parent, chain.source.turns) if run.parent else []
        if branch and branch[0].status in (RUNNING, "interrupted"):
            # The history is not complete while the parent is live, and an answer to an interrupt
            # concerns that run only.
            return None, chain.source
        principal = "" if chain.shared else run.principal
        history = turns(self._store, branch, chain.source.turns)
        key = cache_key(chain.name, chain.version, principal, run.input, history)
        while True:
            holder = self._store.claim(key, run.id, chain.cache)
            if holder == run.id:
                return key, chain.source
            earlier = self._store.get(holder)
            if earlier is not None and (earlier.live or earlier.status == "done"):
                logger.info("run %s: replays run %s", run.id, holder)

                # If the earlier run is cancelled, one of its followers calls the chain and the
                # others replay that one.
                def find_again() -> Source:
                    return self.source(chain, run)[1]

                return None, ReplaySource(self._read, earlier, chain.source, find_again)
            self._store.release_claim(key, holder)


class ReplaySource(Source):
    """A source that replays another run.

    If that run fails, it uses `source`. If that run is cancelled, it calls `find_again`.
    """

    def __init__(
        self,
        read: Callable[[Run], LogReader],
        run: Run,
        source: Source,
        find_again: Callable[[], Source],
    ) -> None:
        self._read = read
        self._run = run
        self._source = source
        self._find_again = find_again

    def check(self, value: dict[str, Any]) -> None:
        self._source.check(value)

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        reader = self._read(self._run)
        replayed = False
        try:
            while True:
                batch = reader.take()
                if batch is None:
                    reader.wait(_WAIT_TIME)
                    continue
                for event in batch.events:
                    if event.type not in _NOT_REPLAYED:
                        replayed = True
                        yield event.type, event.data
                if batch.ended:
                    end = batch.events[-1].value()
                    break
        finally:
            reader.close()
        if end["status"] == "done":
            yield "custom", encode({"name": "cached", "value": True})
            reason = end.get("finish_reason")
            return FinishReason(reason) if reason else None
        if replayed:
            yield "reset", encode({"attempt": 1, "reason": ErrorCode.MODEL_ERROR})
        # A stop concerned the earlier run only, so the cache can be used again. After a failure,
        # each follower calls the chain, or they would fail one after the other.
        source = self._source if end["status"] == "failed" else self._find_again()
        return (yield from source.stream(input))
