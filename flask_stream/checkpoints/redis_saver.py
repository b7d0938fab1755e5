"""LangGraph's checkpoints in Redis or Valkey, on plain commands.

LangGraph's own saver wants modules of Redis that Debian's and Valkey lack. Here a thread is six
keys, so that it is removed by one command. All begin with the saver's prefix:

    ids:<thread>            a sorted set: which checkpoints there are
    checkpoints:<thread>    a hash: checkpoint → what it is, without its channels' values
    about:<thread>          a hash: checkpoint → its metadata, as JSON
    values:<thread>         a hash: channel and version → value; checkpoints share them
    written:<thread>        a sorted set: which writes there are
    writes:<thread>         a hash: write → value

A checkpoint is known by its namespace and its id, a write by these, its task and its place among
the task's writes: joined by NUL, so that those of one namespace, or of one checkpoint, stand
together in their set, by id. Values are as the saver's `serde` writes them, behind a line of
JSON. No key has a time to live.
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

#: Checkpoints that are looked at in one round trip.
PAGE = 100

_KEYS = ("ids", "checkpoints", "about", "values", "written", "writes")
_Place = tuple[str, str]  # a thread, and one of its checkpoints
_Places = list[_Place]
_Writes = list[PendingWrite]
_NUL, _AFTER_NUL = "\0", "\x01"


class RedisSaver(BaseCheckpointSaver[str]):
    """Keeps checkpoints in a Redis >= 6.2 or a Valkey. Raises the errors of its client.

    `client` is one of redis-py that does not decode responses.
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
        about = json.dumps(get_checkpoint_metadata(config, metadata), ensure_ascii=False)
        changed = {
            _join(ns, channel, str(version)): self._pack(values[channel])
            for channel, version in new_versions.items()
            if channel in values
        }
        place = _join(ns, checkpoint["id"])
        with self._client.pipeline() as at_once:
            if changed:
                at_once.hset(self._key("values", thread), mapping=changed)
            packed = self._pack(rest, get_checkpoint_id(config))
            at_once.hset(self._key("checkpoints", thread), place, packed)
            at_once.hset(self._key("about", thread), place, about.encode(errors="ignore"))
            at_once.zadd(self._key("ids", thread), {place: 0})
            at_once.execute()
        return _config(thread, ns, checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        thread, ns = _thread(config), config["configurable"].get("checkpoint_ns", "")
        place = _join(ns, config["configurable"]["checkpoint_id"])
        with self._client.pipeline() as at_once:
            for index, (channel, value) in enumerate(writes):
                index = WRITES_IDX_MAP.get(channel, index)
                write = _join(place, task_id, str(index))
                # What a task has written stays. Of errors, questions and answers the last counts.
                put = at_once.hset if index < 0 else at_once.hsetnx
                packed = self._pack(value, channel, task_path)
                put(self._key("writes", thread), write, packed)
                at_once.zadd(self._key("written", thread), {write: 0})
            at_once.execute()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread, ns = _thread(config), config["configurable"].get("checkpoint_ns", "")
        id = get_checkpoint_id(config)
        place = _join(ns, id) if id else self._newest(thread, ns)
        return next(self._load([(thread, place)]), None) if place else None

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        places = self._places(config, get_checkpoint_id(before) if before else None)
        for begin in range(0, len(places), PAGE):
            page = places[begin : begin + PAGE]
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
        # Its end is random: the values of two branches must not have the same version.
        number = 1 if current is None else int(current.split(".")[0]) + 1
        return f"{number:032}.{random.random():016}"  # noqa: S311 - no secret

    def _newest(self, thread: str, ns: str) -> str | None:
        oldest, newest = _within(ns)
        found = self._client.zrevrangebylex(self._key("ids", thread), newest, oldest, 0, 1)
        return found[0].decode() if found else None

    def _places(self, config: RunnableConfig | None, before: str | None) -> _Places:
        """The checkpoints that are asked for, newest first."""
        of = config["configurable"] if config is not None else {}
        ns, only = of.get("checkpoint_ns"), of.get("checkpoint_id")
        oldest, newest = ("-", "+") if ns is None else _within(ns)
        found = [
            (thread, place.decode())
            for thread in ([_thread(config)] if config is not None else self._threads())
            for place in self._client.zrangebylex(self._key("ids", thread), oldest, newest)
        ]
        found.sort(key=_id, reverse=True)
        return [
            place
            for place in found
            if (not only or _id(place) == only) and (not before or _id(place) < before)
        ]

    def _threads(self) -> Iterator[str]:
        start = self._key("ids", "")
        keys = {*self._client.scan_iter(f"{_literal(start)}*", count=1000)}
        return (key.decode().removeprefix(start) for key in keys)

    def _matching(self, places: _Places, filter: dict[str, Any]) -> _Places:
        with self._client.pipeline(transaction=False) as together:
            for thread, place in places:
                together.hget(self._key("about", thread), place)
            abouts = [json.loads(about or "{}") for about in together.execute()]
        return [
            place
            for place, about in zip(places, abouts, strict=True)
            if all(about.get(name) == value for name, value in filter.items())
        ]

    def _load(self, places: _Places) -> Iterator[CheckpointTuple]:
        """The checkpoints that are there."""
        with self._client.pipeline(transaction=False) as together:
            for thread, place in places:
                together.hget(self._key("checkpoints", thread), place)
                together.hget(self._key("about", thread), place)
                together.zrangebylex(self._key("written", thread), *_within(place))
            said = together.execute()
        there = [
            (place, self._unpack(packed), json.loads(about), written)
            for place, packed, about, written in zip(
                places, said[::3], said[1::3], said[2::3], strict=True
            )
            if packed is not None and about is not None
        ]
        with self._client.pipeline(transaction=False) as together:
            for (thread, place), (_, checkpoint), _, written in there:
                ns = place.partition(_NUL)[0]
                # Redis wants one field at least.
                together.hmget(self._key("values", thread), ["", *_versions(ns, checkpoint)])
                together.hmget(self._key("writes", thread), ["", *written])
            said = together.execute()
        for one, values, writes in zip(there, said[::2], said[1::2], strict=True):
            (thread, place), ((parent,), checkpoint), about, written = one
            ns, id = place.split(_NUL)
            yield CheckpointTuple(
                config=_config(thread, ns, id),
                checkpoint=checkpoint | {"channel_values": self._values(checkpoint, values[1:])},
                metadata=about,
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
        return [write for _, write in sorted(found, key=lambda one: one[0])]

    def _pack(self, value: Any, *about: str | None) -> bytes:
        kind, data = self.serde.dumps_typed(value)
        return json.dumps([kind, *about]).encode() + b"\n" + data

    def _unpack(self, packed: bytes) -> tuple[Sequence[Any], Any]:
        head, _, data = packed.partition(b"\n")
        kind, *about = json.loads(head)
        return about, self.serde.loads_typed((kind, data))

    def _key(self, name: str, thread: str) -> str:
        return f"{self._prefix}{name}:{thread}"


def _join(*parts: str) -> str:
    return _NUL.join(parts)


def _within(start: str) -> tuple[str, str]:
    """The range of those that begin with `start` as a part of their own."""
    return f"[{start}{_NUL}", f"({start}{_AFTER_NUL}"


def _id(place: _Place) -> str:
    return place[1].rpartition(_NUL)[2]


def _versions(ns: str, checkpoint: Checkpoint) -> Iterator[str]:
    for channel, version in checkpoint["channel_versions"].items():
        yield _join(ns, channel, str(version))


def _literal(text: str) -> str:
    """As a pattern of Redis that matches the text alone."""
    return "".join(f"\\{each}" if each in "*?[]^-\\" else each for each in text)


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _config(thread: str, ns: str, id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id}}
