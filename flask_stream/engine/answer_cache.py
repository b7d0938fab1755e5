"""Answers asked twice: a run that reads what an earlier run has said, instead of asking the chain.

The earlier one may still be under way; then both go on together. It is a run of its own all the
same, with its own log, owner and Stop. Should the one that it reads not come to a good end, it
forgets what it has shown and asks for itself, or reads another that does.
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

#: What an earlier run said that this one does not say: its own frame, what it has cost, and what
#: it wanted to know.
_OWN = {"start", "end", "usage", "interrupt"}
#: Seconds between two looks whether there is anything new to read.
_WAIT = 1.0


def cache_key(chain: str, version: str, who: str, input: str, history: Sequence[Turn]) -> str:
    """The same for the same question, to the same chain, after the same history, of the same."""
    asked = json.loads(input)  # the same, in whatever order it was sent
    whole = json.dumps([chain, version, who, asked, [list(t) for t in history]], sort_keys=True)
    return f"answer:{sha256(whole.encode()).hexdigest()}"


class AnswerCache:
    """Finds the earlier answer. `read` reads a run from its beginning."""

    def __init__(self, store: Store, read: Callable[[Run], LogReader]) -> None:
        self._store = store
        self._read = read

    def source(self, chain: Chain, run: Run) -> tuple[str | None, Source]:
        """What answers this run, and the key under which others find it, if they may."""
        try:
            return self._found(chain, run)
        except StoreError as error:
            # The run is there: it is answered, if not from what was said before.
            logger.warning("store: %s: run %s asks for itself", error, run.id)
            return None, chain.source

    def _found(self, chain: Chain, run: Run) -> tuple[str | None, Source]:
        if not chain.cache or (is_anonymous(run.principal) and not chain.shared):
            return None, chain.source  # nobody knows whether the same person asks again
        branch = self._store.branch(run.parent, chain.source.turns) if run.parent else []
        if branch and branch[0].status in (RUNNING, "interrupted"):
            # What it follows is not known before that has ended; a reply to it is for it alone.
            return None, chain.source
        who = "" if chain.shared else run.principal
        earlier = turns(self._store, branch, chain.source.turns)
        key = cache_key(chain.name, chain.version, who, run.input, earlier)
        while True:
            holder = self._store.claim(key, run.id, chain.cache)
            if holder == run.id:
                return key, chain.source
            there = self._store.get(holder)
            if there is not None and (there.live or there.status == "done"):
                logger.info("run %s: reads run %s", run.id, holder)
                # After one that was stopped: one asks, and the others read it.
                return None, ReplaySource(
                    self._read, there, chain.source, lambda: self.source(chain, run)[1]
                )
            self._store.release_claim(key, holder)


class ReplaySource(Source):
    """A source that reads another run.

    If that one fails, it asks `source`; if somebody stops it, what `again` finds.
    """

    def __init__(
        self,
        read: Callable[[Run], LogReader],
        run: Run,
        source: Source,
        again: Callable[[], Source],
    ) -> None:
        self._read = read
        self._run = run
        self._source = source
        self._again = again

    def check(self, value: dict[str, Any]) -> None:
        self._source.check(value)

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        reader = self._read(self._run)
        said = False
        try:
            while True:
                shared = reader.take()
                if shared is None:
                    reader.wait(_WAIT)
                    continue
                for event in shared.events:
                    if event.type not in _OWN:
                        said = True
                        yield event.type, event.data
                if shared.ended:
                    end = shared.events[-1].value()
                    break
        finally:
            reader.close()
        if end["status"] == "done":
            yield "custom", encode({"name": "cached", "value": True})
            reason = end.get("finish_reason")
            return FinishReason(reason) if reason else None
        if said:
            yield "reset", encode({"attempt": 1, "reason": ErrorCode.MODEL_ERROR})
        # Who has stopped it meant that one alone; what has failed may fail again, for each in turn.
        source = self._source if end["status"] == "failed" else self._again()
        return (yield from source.stream(input))
