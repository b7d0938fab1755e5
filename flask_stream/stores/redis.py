"""`redis://`, `rediss://`, `unix://`: logs in Redis or Valkey, for many processes and machines.

A run is a hash, its log a stream with one entry per batch: the entry's id is the seq of the
batch's last event, its value the events as lines. So a batch costs one command however many
events it has, and a place in the log is found by its number. What has to happen at once happens
in a script; each is a file beside this one and says what it does. No key of a run has a time to
live: a log that is half gone would be worse than one that goes late.

All keys begin with the store's prefix, then:

    run:<run>  log:<run>  gone:<run>        a hash, a stream; whose run was removed for its age
    live  ended                             runs by when their lease runs out, by when created
    cancelled                               live runs that are to be cancelled
    conversation:<id>:<principal>           a hash
    runs-in:<id>:<principal>                its runs by when they were created
    live-in:<id>:<principal>                those that are live
    conversations-of:<principal>            by when they were updated
    live-of:<principal>                     its live runs
    count:<key>  claim:<key>                with a time to live

A conversation's id is an id of ours and has no colon in it; a principal may have any. Runs that
were stored before there were conversations are in none, and nobody's to list or to forget.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import ConfigError
from ..events import Event
from . import redis_scripts as scripts
from .base import (
    NO_CONDITIONS,
    Batch,
    Conversation,
    ConversationBusy,
    CreateConditions,
    LeaseState,
    News,
    PurgedRun,
    Run,
    Store,
    TooManyLiveRuns,
)

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError
    from redis.retry import Retry
except ImportError as missing:
    raise ConfigError(
        "STREAM_STORE",
        "is in Redis, and its client is not installed: pip install 'flask-llm-stream[redis]'",
    ) from missing

from ..redis_connection import TIMEOUT, check, connection_pool, store_errors, without_secrets
from .batch_format import decode_batch, encode_batch
from .redis_news import NewsFeed
from .redis_records import fields, head, ms, pairs, to_conversation, to_run

logger = logging.getLogger(__name__)

#: Milliseconds for which an expired run is remembered at least.
REMEMBERED = 3_600_000


class RedisStore(Store):
    """Keeps logs in Redis >= 6.2 or Valkey. For any number of processes and machines.

    All keys begin with `prefix`. `timeout` is how many seconds the server may take to answer.
    Raises ConfigError for a URL that is none, and for a server that is not there or that would
    not keep logs. The connections are made where they are used: none is carried through a fork.
    """

    def __init__(
        self, url: str, *, prefix: str = "flask_stream:", timeout: float = TIMEOUT
    ) -> None:
        self._shown = without_secrets(url)
        self._pool = connection_pool(url, timeout, "STREAM_STORE")
        self._redis: Any = Redis(connection_pool=self._pool)
        _look_at(check(self._redis, self._shown, "STREAM_STORE"), self._shown)
        self._prefix = prefix
        self._live, self._ended = f"{prefix}live", f"{prefix}ended"
        self._cancelled = f"{prefix}cancelled"
        self._run, self._log, self._gone = f"{prefix}run:", f"{prefix}log:", f"{prefix}gone:"
        self._conversation = f"{prefix}conversation:"
        self._count, self._claim = f"{prefix}count:", f"{prefix}claim:"
        self._ear = NewsFeed(self._connection, prefix, self._to_be_cancelled)

    # Runs

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        conversation, runs, live = self._in(run.principal, run.conversation)
        conversations, lives = self._of(run.principal)
        keys = (self._run + run.id, self._live, conversation, runs, live, conversations, lives)
        arguments = (run.id, lease_token, ms(lease), run.conversation, repr(run.created))
        terms = (conditions.max_live_runs, int(conditions.only_live_run), conditions.title)
        with self._errors():
            denied = self._call(scripts.CREATE, keys, *arguments, *terms, *fields(run))
        if not denied:
            return None
        if denied[0] == b"busy":
            raise ConversationBusy(denied[1].decode())
        if denied[0] == b"full":
            raise TooManyLiveRuns
        return to_run(run.id, pairs(denied[1]))

    def get(self, run: str) -> Run | None:
        with self._errors():
            there = self._redis.hgetall(self._run + run)
        return to_run(run, there) if there else None

    def branch(self, run: str, limit: int) -> list[Run]:
        with self._errors():
            found = self._call(scripts.BRANCH, (), self._run, run, limit)
        return [to_run(id.decode(), pairs(each)) for id, each in found]

    def expired_principal(self, run: str) -> str | None:
        with self._errors():
            principal = self._redis.get(self._gone + run)
        return None if principal is None else principal.decode()

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        if not batches:
            return []
        keys = (self._live, self._ended, self._cancelled)
        arguments = [self._prefix]
        for batch in batches:
            arguments += (head(batch), encode_batch(batch.events))
        with self._errors():
            return [stored == 1 for stored in self._call(scripts.APPEND, keys, *arguments)]

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        with self._errors():
            page = self._call(scripts.READ, (self._log + run,), after + 1, after + limit)
        if not page:
            return []
        last, lines = int(page[0].partition(b"-")[0]), page[1].decode().split("\n")
        # The first batch may begin before the place that was asked for.
        begin = after - (last - len(lines))
        return decode_batch(lines[begin:], after + 1)

    def cancel(self, run: str) -> None:
        with self._errors():
            self._call(scripts.CANCEL, (self._run + run, self._cancelled), run, self._ear.cancels)

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, LeaseState]:
        keys = (self._live, *(self._run + run for run in leases))
        pairs = (word for pair in leases.items() for word in pair)
        with self._errors():
            answers = self._call(scripts.RENEW, keys, ms(lease), *pairs)
        return {
            run: LeaseState(answer.decode()) for run, answer in zip(leases, answers, strict=True)
        }

    def take_over(self, lease_token: str, lease: float, limit: int) -> list[Run]:
        with self._errors():
            taken = self._call(
                scripts.TAKE_OVER, (self._live,), self._run, lease_token, ms(lease), limit
            )
        return [to_run(run.decode(), pairs(each)) for run, each in taken]

    def purge(self, age: float, limit: int) -> list[PurgedRun]:
        before, remember = repr(time.time() - age), max(ms(age), REMEMBERED)
        with self._errors():
            gone = self._call(scripts.PURGE, (self._ended,), self._prefix, before, remember, limit)
        return [PurgedRun(*(text.decode() for text in of)) for of in gone]

    # Conversations

    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        newest = repr(before[0]) if before else "+inf"
        key, _ = self._of(principal)
        with self._errors():
            page = self._call(
                scripts.CONVERSATIONS, (key,), self._conversation, principal, newest, limit
            )
        found = [to_conversation(id.decode(), principal, pairs(each)) for id, each in page]
        return [each for each in found if not before or (each.updated, each.id) < before][:limit]

    def conversation(self, principal: str, id: str) -> Conversation | None:
        with self._errors():
            there = self._redis.hgetall(self._in(principal, id)[0])
        return to_conversation(id, principal, there) if there else None

    def runs(self, principal: str, conversation: str) -> list[Run]:
        _, runs, _ = self._in(principal, conversation)
        with self._errors():
            found = self._call(scripts.RUNS, (runs,), self._run)
        return [to_run(run.decode(), pairs(each)) for run, each in found]

    def newest(self, principal: str, conversation: str) -> Run | None:
        _, runs, _ = self._in(principal, conversation)
        with self._errors():
            found = self._call(scripts.NEWEST, (runs,), self._run)
        return to_run(found[0].decode(), pairs(found[1])) if found else None

    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        key, _, _ = self._in(principal, conversation)
        with self._errors():
            return bool(self._call(scripts.RENAME_CONVERSATION, (key,), title))

    def delete_conversation(self, principal: str, conversation: str) -> bool:
        keys = [*self._in(principal, conversation), *self._of(principal)]
        keys += [self._live, self._ended, self._cancelled]
        with self._errors():
            return bool(self._call(scripts.DELETE_CONVERSATION, keys, self._prefix, conversation))

    def _in(self, principal: str, conversation: str) -> tuple[str, str, str]:
        """Keys of a conversation: itself, its runs, the live ones."""
        end = f"{conversation}:{principal}"
        return (
            self._conversation + end,
            f"{self._prefix}runs-in:{end}",
            f"{self._prefix}live-in:{end}",
        )

    def _of(self, principal: str) -> tuple[str, str]:
        """Keys of a principal: its conversations, its live runs."""
        return f"{self._prefix}conversations-of:{principal}", f"{self._prefix}live-of:{principal}"

    # Small things that have a time to live

    def count(self, key: str, amount: int, ttl: float) -> int:
        key = self._count + key
        with self._errors():
            if amount == 0:
                return int(self._redis.get(key) or 0)
            return int(self._call(scripts.COUNT, (key,), amount, ms(ttl)))

    def claim(self, key: str, value: str, ttl: float) -> str:
        with self._errors():
            return str(self._call(scripts.CLAIM, (self._claim + key,), value, ms(ttl)).decode())

    def release_claim(self, key: str, value: str) -> None:
        with self._errors():
            self._call(scripts.RELEASE_CLAIM, (self._claim + key,), value)

    # News

    def watch(self, run: str) -> None:
        self._ear.watch(run)

    def unwatch(self, run: str) -> None:
        self._ear.unwatch(run)

    def news(self, timeout: float) -> list[News]:
        with self._errors():
            return self._ear.wait(timeout)

    def close(self) -> None:
        self._ear.close()
        self._pool.disconnect()

    def _call(self, script: scripts.Script, keys: Sequence[str], *arguments: str | int) -> Any:
        try:
            return self._redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            # A server that is new or was restarted; this way it learns the script, too.
            return self._redis.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

    def _to_be_cancelled(self) -> list[str]:
        return [run.decode() for run in self._redis.smembers(self._cancelled)]

    def _connection(self) -> Any:
        """A connection beside the pool's, that does not try anything again by itself."""
        return self._pool.connection_class(
            **self._pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)}
        )

    def _errors(self) -> AbstractContextManager[None]:
        return store_errors(self._pool, self._shown)


def _look_at(info: Mapping[str, Any], shown: str) -> None:
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("volatile-") and info.get("maxmemory"):
        logger.warning(
            "STREAM_STORE: %s has the maxmemory-policy %s, which forgets counts and claims before "
            "their time when memory runs out: set it to noeviction",
            *(shown, policy),
        )
