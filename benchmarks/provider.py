"""An OpenAI-compatible server that never waits: what it says was written before it was asked.

`/each` says the same with a write per token: the worst that a client may have to read.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

from .words import words

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def _event(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "bench"}
    return b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"


async def serve(port: int, tokens: int) -> None:
    """Serve until ended."""
    pieces = [_event({"role": "assistant", "content": ""})]
    pieces += [_event({"content": word}) for word in words(tokens)]
    pieces += [_event({}, "stop"), b"data: [DONE]\n\n"]
    body = b"".join(pieces)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
                closing = b"connection: close" in head.lower()
                if head.startswith(b"POST /each"):
                    writer.write(_HEAD + b"Connection: close\r\n\r\n")
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                    return
                writer.write(_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
                if closing:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
