"""The store `redis://`, `rediss://`, `unix://`: logs in Redis or Valkey, for many machines.

A run is a hash, and its log is a stream with one entry per batch. The entry's id is the seq of
the batch's last event, and its value is the events as lines. A batch therefore costs one command,
however many events it has, and a position in the log is found by its seq. Lua scripts, each in a
file of its own, do what has to be atomic. The keys of a run have no time to live, because Redis
could then delete a part of a run.

All keys begin with the store's prefix, followed by:

    run:<run>  log:<run>                    a run's hash, its log
    gone:<run>                              the principal of a run that `purge` removed
    live  ended                             runs by the expiry of their lease, by `created`
    cancelled                               the live runs that are to be cancelled
    conversation:<id>:<principal>           a conversation's hash
    runs-in:<id>:<principal>                its runs by `created`
    live-in:<id>:<principal>                its live runs
    conversations-of:<principal>            a principal's conversations by `updated`
    live-of:<principal>                     its live runs
    count:<key>  claim:<key>                counters and claims, with a time to live

The id of a conversation contains no colon; a principal may. Runs that were stored before there
were conversations belong to no conversation: they can be neither listed nor deleted with one.
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
        "needs the Redis client, which is not installed: pip install 'flask-llm-stream[redis]'",
    ) from missing

from ..redis_connection import TIMEOUT, check, connection_pool, store_errors, without_secrets
from .batch_format import decode_batch, encode_batch
from .redis_news import NewsFeed
from .redis_records import fields, head, ms, pairs, to_conversation, to_run

logger = logging.getLogger(__name__)

#: The shortest time, in milliseconds, for which a removed run is remembered.
REMEMBERED = 3_600_000


class RedisStore(Store):
    """Keeps logs in Redis >= 6.2 or Valkey. For any number of processes and machines.

    All keys begin with `prefix`. `timeout` is the number of seconds that the server may take to
    answer. Raise ConfigError if the URL is invalid, if the server does not answer, or if its
    configuration would let it delete logs. No connection is kept open across a fork.
    """

    def __init__(
        self, url: str, *, prefix: str = "flask_stream:", timeout: float = TIMEOUT
    ) -> None:
        self._shown = without_secrets(url)
        self._pool = connection_pool(url, timeout, "STREAM_STORE")
        self._redis: Any = Redis(connection_pool=self._pool)
        _warn_of_eviction(check(self._redis, self._shown, "STREAM_STORE"), self._shown)
        self._prefix = prefix
        self._live, self._ended = f"{prefix}live", f"{prefix}ended"
        self._cancelled = f"{prefix}cancelled"
        self._run, self._log, self._gone = f"{prefix}run:", f"{prefix}log:", f"{prefix}gone:"
        self._conversation = f"{prefix}conversation:"
        self._count, self._claim = f"{prefix}count:", f"{prefix}claim:"
        self._news_feed = NewsFeed(self._connection, prefix, self._pending_cancels)

    # Runs

    def create(
        self, run: Run, lease_token: str, lease: float, conditions: CreateConditions = NO_CONDITIONS
    ) -> Run | None:
        conversation, runs, live = self._conversation_keys(run.principal, run.conversation)
        conversations, live_of = self._principal_keys(run.principal)
        keys = (self._run + run.id, self._live, conversation, runs, live, conversations, live_of)
        arguments = (run.id, lease_token, ms(lease), run.conversation, repr(run.created))
        terms = (conditions.max_live_runs, int(conditions.only_live_run), conditions.title)
        with self._errors():
            refused = self._call(scripts.CREATE, keys, *arguments, *terms, *fields(run))
        if not refused:
            return None
        if refused[0] == b"busy":
            raise ConversationBusy(refused[1].decode())
        if refused[0] == b"full":
            raise TooManyLiveRuns
        return to_run(run.id, pairs(refused[1]))

    def get(self, run: str) -> Run | None:
        with self._errors():
            found = self._redis.hgetall(self._run + run)
        return to_run(run, found) if found else None

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
        # The first batch may begin before `after`.
        begin = after - (last - len(lines))
        return decode_batch(lines[begin:], after + 1)

    def cancel(self, run: str) -> None:
        with self._errors():
            self._call(
                scripts.CANCEL, (self._run + run, self._cancelled), run, self._news_feed.cancels
            )

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
        before, remembered = repr(time.time() - age), max(ms(age), REMEMBERED)
        with self._errors():
            arguments = (self._prefix, before, remembered, limit)
            purged = self._call(scripts.PURGE, (self._ended,), *arguments)
        return [PurgedRun(*(text.decode() for text in fields)) for fields in purged]

    # Conversations

    def conversations(
        self, principal: str, limit: int, before: tuple[float, str] | None = None
    ) -> list[Conversation]:
        newest = repr(before[0]) if before else "+inf"
        key, _ = self._principal_keys(principal)
        with self._errors():
            page = self._call(
                scripts.CONVERSATIONS, (key,), self._conversation, principal, newest, limit
            )
        found = [to_conversation(id.decode(), principal, pairs(each)) for id, each in page]
        return [each for each in found if not before or (each.updated, each.id) < before][:limit]

    def conversation(self, principal: str, id: str) -> Conversation | None:
        with self._errors():
            found = self._redis.hgetall(self._conversation_keys(principal, id)[0])
        return to_conversation(id, principal, found) if found else None

    def runs(self, principal: str, conversation: str) -> list[Run]:
        _, runs, _ = self._conversation_keys(principal, conversation)
        with self._errors():
            found = self._call(scripts.RUNS, (runs,), self._run)
        return [to_run(run.decode(), pairs(each)) for run, each in found]

    def newest(self, principal: str, conversation: str) -> Run | None:
        _, runs, _ = self._conversation_keys(principal, conversation)
        with self._errors():
            found = self._call(scripts.NEWEST, (runs,), self._run)
        return to_run(found[0].decode(), pairs(found[1])) if found else None

    def rename_conversation(self, principal: str, conversation: str, title: str) -> bool:
        key, _, _ = self._conversation_keys(principal, conversation)
        with self._errors():
            return bool(self._call(scripts.RENAME_CONVERSATION, (key,), title))

    def delete_conversation(self, principal: str, conversation: str) -> bool:
        keys = [
            *self._conversation_keys(principal, conversation),
            *self._principal_keys(principal),
        ]
        keys += [self._live, self._ended, self._cancelled]
        with self._errors():
            return bool(self._call(scripts.DELETE_CONVERSATION, keys, self._prefix, conversation))

    def _conversation_keys(self, principal: str, conversation: str) -> tuple[str, str, str]:
        """Return the keys of a conversation, of its runs, and of its live runs."""
        end = f"{conversation}:{principal}"
        return (
            self._conversation + end,
            f"{self._prefix}runs-in:{end}",
            f"{self._prefix}live-in:{end}",
        )

    def _principal_keys(self, principal: str) -> tuple[str, str]:
        """Return the keys of a principal's conversations and of its live runs."""
        return f"{self._prefix}conversations-of:{principal}", f"{self._prefix}live-of:{principal}"

    # Counters and claims

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
        self._news_feed.watch(run)

    def unwatch(self, run: str) -> None:
        self._news_feed.unwatch(run)

    def news(self, timeout: float) -> list[News]:
        with self._errors():
            return self._news_feed.wait(timeout)

    def close(self) -> None:
        self._news_feed.close()
        self._pool.disconnect()

    def _call(self, script: scripts.Script, keys: Sequence[str], *arguments: str | int) -> Any:
        try:
            return self._redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            # The server is new or was restarted. EVAL also stores the script there.
            return self._redis.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

    def _pending_cancels(self) -> list[str]:
        return [run.decode() for run in self._redis.smembers(self._cancelled)]

    def _connection(self) -> Any:
        """Return a new connection outside of the pool, which does not retry by itself."""
        return self._pool.connection_class(
            **self._pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)}
        )

    def _errors(self) -> AbstractContextManager[None]:
        return store_errors(self._pool, self._shown)


def _warn_of_eviction(info: Mapping[str, Any], shown: str) -> None:
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("volatile-") and info.get("maxmemory"):
        logger.warning(
            "STREAM_STORE: %s has the maxmemory-policy %s, which deletes counters and claims too "
            "early when memory runs out: set it to noeviction",
            *(shown, policy),
        )
