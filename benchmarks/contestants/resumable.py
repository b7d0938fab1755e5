"""fastapi-resumable-stream, as in its README: chunks are kept in a Redis list and read there."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi_resumable_stream import (
    ActiveStreamRegistry,
    ResumableStream,
    StopController,
    start_conversation_stream,
)
from redis.asyncio import Redis

from ..model import asked, chain, text

app = FastAPI()
# Each stream holds a connection for its subscription and takes others for its commands: with
# redis-py's own limit of 100 connections, half of 200 streams would fail.
redis = Redis.from_url(os.environ["BENCH_STORE"], max_connections=10_000)
resumable = ResumableStream(redis)
registry = ActiveStreamRegistry(redis)
stop = StopController(redis)


async def told() -> AsyncIterator[str]:
    # Not the `astream_events` of its LangChain recipe, which costs half as much again.
    async for chunk in chain.astream(asked):
        if token := text(chunk):
            yield f"data: {token}\n\n"


@app.get("/stream")
async def stream() -> StreamingResponse:
    run = uuid.uuid4().hex
    answer: StreamingResponse = await start_conversation_stream(
        resumable, registry, stop, run, run, told
    )
    return answer
