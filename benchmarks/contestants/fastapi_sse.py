"""FastAPI with sse-starlette and `astream`, as both manuals have it; nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import FastAPI
from sse_starlette import EventSourceResponse

from ..model import INPUT, chosen, text

app = FastAPI()
chain = chosen()


async def told() -> AsyncIterator[dict[str, str]]:
    async for piece in chain.astream(INPUT):
        if said := text(piece):
            yield {"data": said}


@app.get("/stream")
async def stream() -> EventSourceResponse:
    return EventSourceResponse(told())
