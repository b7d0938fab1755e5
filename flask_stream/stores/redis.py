"""`redis://`, `rediss://`, `unix://`: logs in Redis or Valkey, for many processes and machines.

A run is a hash, its log a stream with one entry per batch: the entry's id is the seq of the
batch's last event, its value the events as lines. So a batch costs one command however many
events it has, and a place in the log is found by its number. What has to happen at once happens
in a script; each is a file beside this one and says what it does. No key of a run has a time to
live: a log that is half gone would be worse than one that goes late.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any

from ..errors import ConfigError, StoreError
from ..events import Event
from .base import Batch, Held, News, Run, Store

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
    from redis.retry import Retry
except ImportError as missing:
    raise ConfigError(
        "STREAM_STORE",
        "is in Redis, and its client is not installed: pip install 'flask-llm-stream[redis]'",
    ) from missing

from .redis_news import Ear
from .redis_server import check, connection_pool, short, without_secrets

#: Milliseconds for which an expired run is remembered at least.
REMEMBERED = 3_600_000


class RedisStore(Store):
    """Keeps logs in Redis >= 6.2 or Valkey. For any number of processes and machines.

    All keys begin with `prefix`. `timeout` is how many seconds the server may take to answer.
    Raises ConfigError for a URL that is none, and for a server that is not there or that would
    not keep logs. The connections are made where they are used: none is carried through a fork.
    """

    def __init__(self, url: str, *, prefix: str = "flask_stream:", timeout: float = 5.0) -> None:
        self._shown = without_secrets(url)
        self._pool = connection_pool(url, timeout)
        self._redis: Any = Redis(connection_pool=self._pool)
        check(self._redis, self._shown)
        self._live, self._ended = f"{prefix}live", f"{prefix}ended"
        self._cancelled = f"{prefix}cancelled"
        self._run, self._log, self._gone = f"{prefix}run:", f"{prefix}log:", f"{prefix}gone:"
        self._news = f"{prefix}news:"
        self._ear = Ear(self._connection, prefix, self._to_be_cancelled)

    def create(self, run: Run, owner: str, lease: float) -> Run | None:
        keys = (self._run + run.id, self._live)
        with self._errors():
            there = self._call(_CREATE, keys, run.id, owner, _ms(lease), *_fields(run))
        return _to_run(run.id, _pairs(there)) if there else None

    def get(self, run: str) -> Run | None:
        with self._errors():
            fields = self._redis.hgetall(self._run + run)
        return _to_run(run, fields) if fields else None

    def expired(self, run: str) -> bool:
        with self._errors():
            return bool(self._redis.exists(self._gone + run))

    def append(self, batches: Sequence[Batch]) -> list[bool]:
        if not batches:
            return []
        keys = (self._live, self._ended, self._cancelled)
        arguments = [self._run, self._log, self._news]
        for run, owner, after, events, status in batches:
            arguments.append(f"{run}\t{owner}\t{after}\t{events[-1].seq}\t{status or ''}")
            arguments.append("\n".join([f"{type}\t{data}" for _, type, data in events]))
        with self._errors():
            return [stored == 1 for stored in self._call(_APPEND, keys, *arguments)]

    def read(self, run: str, after: int, limit: int) -> list[Event]:
        with self._errors():
            page = self._call(_READ, (self._log + run,), after + 1, after + limit)
        if not page:
            return []
        last, lines = int(page[0].partition(b"-")[0]), page[1].decode().split("\n")
        # The first batch may begin before the place that was asked for.
        begin = after - (last - len(lines))
        return [
            Event(seq, *line.split("\t", 1)) for seq, line in enumerate(lines[begin:], after + 1)
        ]

    def cancel(self, run: str) -> None:
        with self._errors():
            self._call(_CANCEL, (self._run + run, self._cancelled), run, self._ear.cancels)

    def renew(self, leases: Mapping[str, str], lease: float) -> dict[str, Held]:
        keys = (self._live, *(self._run + run for run in leases))
        pairs = (word for pair in leases.items() for word in pair)
        with self._errors():
            answers = self._call(_RENEW, keys, _ms(lease), *pairs)
        return {run: Held(answer.decode()) for run, answer in zip(leases, answers, strict=True)}

    def adopt(self, owner: str, lease: float, limit: int) -> list[Run]:
        with self._errors():
            adopted = self._call(_ADOPT, (self._live,), self._run, owner, _ms(lease), limit)
        return [_to_run(run.decode(), _pairs(fields)) for run, fields in adopted]

    def purge(self, age: float, limit: int) -> int:
        prefixes = (self._run, self._log, self._gone)
        before, remember = repr(time.time() - age), max(_ms(age), REMEMBERED)
        with self._errors():
            return int(self._call(_PURGE, (self._ended,), *prefixes, before, remember, limit))

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

    def _call(self, script: _Script, keys: Sequence[str], *arguments: str | int) -> Any:
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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            if isinstance(error, ReadOnlyError):
                # A failover has made this server a replica: its name may lead elsewhere now.
                self._pool.disconnect(inuse_connections=False)
            raise StoreError(f"{self._shown}: {short(error)}") from error


class _Script:
    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath(f"redis_{name}.lua").read_text("ascii")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_CREATE, _APPEND, _READ, _CANCEL = map(_Script, ("create", "append", "read", "cancel"))
_RENEW, _ADOPT, _PURGE = map(_Script, ("renew", "adopt", "purge"))


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _fields(run: Run) -> Iterator[str | int]:
    for name in _FIELDS:
        value = getattr(run, name)
        if value is not None:
            yield name
            yield repr(value) if isinstance(value, float) else value


def _to_run(id: str, fields: Mapping[bytes, bytes]) -> Run:
    def text(name: str) -> str:
        return fields[name.encode()].decode()

    return Run(
        id=id,
        chain=text("chain"),
        conversation=text("conversation"),
        parent=text("parent") if b"parent" in fields else None,
        principal=text("principal"),
        input=text("input"),
        created=float(text("created")),
        status=text("status"),
        seq=int(text("seq")),
        attempt=int(text("attempt")),
    )


#: What is kept of a run beside its id, its owner, and whether it is to be cancelled.
_FIELDS = [field.name for field in dataclasses.fields(Run) if field.name != "id"]
