"""FastAPI with sse-starlette and `astream`, as in both manuals. Nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import FastAPI
from sse_starlette import EventSourceResponse

from ..model import asked, chain, text

app = FastAPI()


async def told() -> AsyncIterator[dict[str, str]]:
    async for chunk in chain.astream(asked):
        if token := text(chunk):
            yield {"data": token}


@app.get("/stream")
async def stream() -> EventSourceResponse:
    return EventSourceResponse(told())
