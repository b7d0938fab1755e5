"""LangGraph's own conformance suite on our savers, which it calls by their asynchronous names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate

from flask_stream.checkpoints.lazy import LazySaver
from flask_stream.registry import open_checkpoints

from .valkey import Valkey


class Asynchronous(LazySaver):
    """The same saver; each asynchronous call is the synchronous one."""

    async def aget_tuple(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_tuple(*args, **kwargs)

    async def alist(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for found in self.list(*args, **kwargs):
            yield found

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        return self.put(*args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        self.put_writes(*args, **kwargs)

    async def adelete_thread(self, *args: Any, **kwargs: Any) -> None:
        self.delete_thread(*args, **kwargs)


def conforms(url: str, folder: Path) -> None:
    @checkpointer_test(name=url)
    async def saver() -> AsyncIterator[LazySaver]:
        opened = open_checkpoints(url, str(folder))
        assert isinstance(opened, LazySaver)
        opened.__class__ = Asynchronous
        yield opened
        opened.close()

    report: Any = asyncio.run(validate(saver))
    failures = {name: result.failures for name, result in report.results.items()}
    assert not any(failures.values()), failures
    assert report.passed_all_base()


@pytest.mark.parametrize("url", ["memory://", "sqlite:///checkpoints.db"])
def test_memory_and_sqlite(url: str, tmp_path: Path) -> None:
    conforms(url, tmp_path)


def test_redis(tmp_path: Path) -> None:
    with Valkey(appendonly=True) as server:
        conforms(server.url, tmp_path)
