"""LangGraph's checkpoints in Redis or Valkey, on plain commands.

LangGraph's own saver needs Redis modules that Valkey and Debian's Redis do not have. This saver
stores a thread in six keys, so one command deletes it. All keys begin with the saver's prefix:

    ids:<thread>            a sorted set of all checkpoints
    checkpoints:<thread>    a hash: checkpoint → checkpoint without the values of its channels
    about:<thread>          a hash: checkpoint → metadata as JSON
    values:<thread>         a hash: channel and version → value, shared by checkpoints
    written:<thread>        a sorted set of all writes
    writes:<thread>         a hash: write → value

The field of a checkpoint is its namespace and its id. The field of a write is the field of its
checkpoint, its task, and its index in the task. NUL separates the parts. So in a sorted set, the
members of one namespace or of one checkpoint are adjacent and sorted by id. A value is one line of
JSON, followed by the output of the saver's `serde`. No key expires.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

#: The number of checkpoints that are read in one round trip.
PAGE = 100

_KEYS = ("ids", "checkpoints", "about", "values", "written", "writes")
_Key = tuple[str, str]  # a thread, and the field of one of its checkpoints
_Keys = list[_Key]
_Writes = list[PendingWrite]
_NUL, _AFTER_NUL = "\0", "\x01"


class RedisSaver(BaseCheckpointSaver[str]):
    """Stores checkpoints in Redis >= 6.2 or Valkey. Raises the errors of redis-py.

    `client` is a redis-py client that does not decode responses.
    """

    def __init__(
        self, client: Any, *, prefix: str = "flask_stream:graph:", serde: SerializerProtocol
    ) -> None:
        super().__init__(serde=serde)
        self._client = client
        self._prefix = prefix

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread, ns = _thread(config), config["configurable"]["checkpoint_ns"]
        values = checkpoint["channel_values"]
        rest = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        saved = json.dumps(get_checkpoint_metadata(config, metadata), ensure_ascii=False)
        changed = {
            _join(ns, channel, str(version)): self._pack(values[channel])
            for channel, version in new_versions.items()
            if channel in values
        }
        field = _join(ns, checkpoint["id"])
        with self._client.pipeline() as transaction:
            if changed:
                transaction.hset(self._key("values", thread), mapping=changed)
            packed = self._pack(rest, get_checkpoint_id(config))
            transaction.hset(self._key("checkpoints", thread), field, packed)
            transaction.hset(self._key("about", thread), field, saved.encode(errors="ignore"))
            transaction.zadd(self._key("ids", thread), {field: 0})
            transaction.execute()
        return _config(thread, ns, checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        thread, ns = _thread(config), config["configurable"].get("checkpoint_ns", "")
        field = _join(ns, config["configurable"]["checkpoint_id"])
        with self._client.pipeline() as transaction:
            for index, (channel, value) in enumerate(writes):
                index = WRITES_IDX_MAP.get(channel, index)
                write = _join(field, task_id, str(index))
                # A negative index marks an error, interrupt or resume value: the last one counts.
                # Other writes are never replaced.
                put = transaction.hset if index < 0 else transaction.hsetnx
                packed = self._pack(value, channel, task_path)
                put(self._key("writes", thread), write, packed)
                transaction.zadd(self._key("written", thread), {write: 0})
            transaction.execute()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread, ns = _thread(config), config["configurable"].get("checkpoint_ns", "")
        id = get_checkpoint_id(config)
        field = _join(ns, id) if id else self._newest(thread, ns)
        return next(self._load([(thread, field)]), None) if field else None

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        keys = self._keys(config, get_checkpoint_id(before) if before else None)
        for begin in range(0, len(keys), PAGE):
            page = keys[begin : begin + PAGE]
            if filter:
                page = self._matching(page, filter)
            if limit is not None:
                page = page[: max(limit, 0)]
                limit -= len(page)
            yield from self._load(page)
            if limit is not None and limit <= 0:
                return

    def delete_thread(self, thread_id: str) -> None:
        self._client.unlink(*(self._key(name, str(thread_id)) for name in _KEYS))

    def get_next_version(self, current: str | None, channel: None) -> str:
        # The random suffix keeps the versions of two branches apart.
        number = 1 if current is None else int(current.split(".")[0]) + 1
        return f"{number:032}.{random.random():016}"  # noqa: S311 - not a secret

    def _newest(self, thread: str, ns: str) -> str | None:
        oldest, newest = _prefix_range(ns)
        found = self._client.zrevrangebylex(self._key("ids", thread), newest, oldest, 0, 1)
        return found[0].decode() if found else None

    def _keys(self, config: RunnableConfig | None, before: str | None) -> _Keys:
        """Return the checkpoints that match the config, newest first."""
        configurable = config["configurable"] if config is not None else {}
        ns, id = configurable.get("checkpoint_ns"), configurable.get("checkpoint_id")
        oldest, newest = ("-", "+") if ns is None else _prefix_range(ns)
        found = [
            (thread, field.decode())
            for thread in ([_thread(config)] if config is not None else self._threads())
            for field in self._client.zrangebylex(self._key("ids", thread), oldest, newest)
        ]
        found.sort(key=_id, reverse=True)
        return [
            key for key in found if (not id or _id(key) == id) and (not before or _id(key) < before)
        ]

    def _threads(self) -> Iterator[str]:
        start = self._key("ids", "")
        keys = {*self._client.scan_iter(f"{_escape_pattern(start)}*", count=1000)}
        return (key.decode().removeprefix(start) for key in keys)

    def _matching(self, keys: _Keys, filter: dict[str, Any]) -> _Keys:
        with self._client.pipeline(transaction=False) as pipeline:
            for thread, field in keys:
                pipeline.hget(self._key("about", thread), field)
            all_metadata = [json.loads(text or "{}") for text in pipeline.execute()]
        return [
            key
            for key, metadata in zip(keys, all_metadata, strict=True)
            if all(metadata.get(name) == value for name, value in filter.items())
        ]

    def _load(self, keys: _Keys) -> Iterator[CheckpointTuple]:
        """Yield these checkpoints, without those that do not exist."""
        with self._client.pipeline(transaction=False) as pipeline:
            for thread, field in keys:
                pipeline.hget(self._key("checkpoints", thread), field)
                pipeline.hget(self._key("about", thread), field)
                pipeline.zrangebylex(self._key("written", thread), *_prefix_range(field))
            results = pipeline.execute()
        found = [
            (key, self._unpack(packed), json.loads(metadata), written)
            for key, packed, metadata, written in zip(
                keys, results[::3], results[1::3], results[2::3], strict=True
            )
            if packed is not None and metadata is not None
        ]
        with self._client.pipeline(transaction=False) as pipeline:
            for (thread, field), (_, checkpoint), _, written in found:
                ns = field.partition(_NUL)[0]
                # HMGET needs at least one field.
                pipeline.hmget(self._key("values", thread), ["", *_value_fields(ns, checkpoint)])
                pipeline.hmget(self._key("writes", thread), ["", *written])
            results = pipeline.execute()
        for row, values, writes in zip(found, results[::2], results[1::2], strict=True):
            (thread, field), ((parent,), checkpoint), metadata, written = row
            ns, id = field.split(_NUL)
            yield CheckpointTuple(
                config=_config(thread, ns, id),
                checkpoint=checkpoint | {"channel_values": self._values(checkpoint, values[1:])},
                metadata=metadata,
                parent_config=_config(thread, ns, parent) if parent else None,
                pending_writes=self._pending(zip(written, writes[1:], strict=True)),
            )

    def _values(self, checkpoint: Checkpoint, packed: Sequence[bytes | None]) -> dict[str, Any]:
        return {
            channel: self._unpack(value)[1]
            for channel, value in zip(checkpoint["channel_versions"], packed, strict=True)
            if value is not None
        }

    def _pending(self, written: Iterable[tuple[bytes, bytes | None]]) -> _Writes:
        found = []
        for write, packed in written:
            if packed is not None:
                _, _, task, index = write.decode().split(_NUL)
                (channel, path), value = self._unpack(packed)
                found.append((writes_sort_key(path, task, int(index)), (task, channel, value)))
        return [write for _, write in sorted(found, key=lambda pair: pair[0])]

    def _pack(self, value: Any, *header: str | None) -> bytes:
        kind, data = self.serde.dumps_typed(value)
        return json.dumps([kind, *header]).encode() + b"\n" + data

    def _unpack(self, packed: bytes) -> tuple[Sequence[Any], Any]:
        line, _, data = packed.partition(b"\n")
        kind, *header = json.loads(line)
        return header, self.serde.loads_typed((kind, data))

    def _key(self, name: str, thread: str) -> str:
        return f"{self._prefix}{name}:{thread}"


def _join(*parts: str) -> str:
    return _NUL.join(parts)


def _prefix_range(start: str) -> tuple[str, str]:
    """Return the range of the members whose first parts are `start`, for ZRANGEBYLEX."""
    return f"[{start}{_NUL}", f"({start}{_AFTER_NUL}"


def _id(key: _Key) -> str:
    return key[1].rpartition(_NUL)[2]


def _value_fields(ns: str, checkpoint: Checkpoint) -> Iterator[str]:
    for channel, version in checkpoint["channel_versions"].items():
        yield _join(ns, channel, str(version))


def _escape_pattern(text: str) -> str:
    """Return a Redis pattern that matches exactly this text."""
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _config(thread: str, ns: str, id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id}}
